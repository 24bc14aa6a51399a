"""The report: its numbers worked by hand, its table and its page."""

import base64
import io
import json
import math
import pathlib
import re

import numpy as np
import pytest
import soundfile

from federated import examples, report
from gptfl_jax import artifacts, configuration
from gptfl_jax.errors import UserError

from ..recordings import write_fsdd, write_synthetic
from .conftest import make_config


def make_run(
    workdir: pathlib.Path,
    name: str,
    accuracies: list[float | None],
    seed: int = 0,
    measured: bool = False,
    **federated,
) -> None:
    """A run whose round r sent 1,000 r bytes up and 500 r down.

    `measured`: with all that a run may measure about its clients.
    """
    config = make_config(rounds=len(accuracies) - 1, run=name, **federated)
    config.seed = seed
    folder = workdir / "federated" / name
    artifacts.write_run_record(folder, config)
    metrics = artifacts.Metrics(folder / "metrics.jsonl")
    for step, accuracy in enumerate(accuracies):
        line = {"bytes_up": 1000 * step, "bytes_down": 500 * step}
        if step:
            line |= {"train_loss": 1.0, "gradient_diversity": 0.1 * step, "dropped": 0}
        if step and measured:
            line |= {"inverse_gradient_diversity": 10 / step, "cosine_mean": 0.5}
            line |= {"update_norm_mean": 2.0 * step, "update_norm_std": 0.7 * step}
            line |= {"update_norm_min": 1.5 * step, "drift": 3.0 * step}
        if accuracy is not None:
            line |= {"accuracy": accuracy, "macro_f1": accuracy - 0.1, "loss": 0.5}
            if measured:
                # Seed s: 10 s % better after fine-tuning.
                line |= {
                    "client_accuracy_mean": accuracy,
                    "client_accuracy_worst_decile": accuracy / 2,
                    "client_accuracy_best": 1.0,
                    "personalised_accuracy_mean": accuracy + 0.1 * seed,
                    "personalised_accuracy_worst_decile": accuracy / 2 + 0.1 * seed,
                    "personalised_accuracy_best": 1.0,
                }
        metrics.write(step, **line, seconds=2.0)
    counts = np.arange(120).reshape(12, 10)
    artifacts.write_json(
        folder / "partition.json",
        {"class_names": list("0123456789"), "sizes": [], "label_counts": counts},
    )


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two seeds of FedAvg from scratch, two of GPT-FL."""
    make_run(tmp_path, "scratch-s0", [0.1, None, 0.92, None, 0.96], seed=0)
    make_run(tmp_path, "scratch-s1", [0.2, None, 0.80, None, 0.92], seed=1)
    options = {"init": "synthetic"}
    make_run(tmp_path, "gptfl-s0", [0.75, None, 0.95, None, 0.97], seed=0, **options)
    make_run(tmp_path, "gptfl-s1", [0.75, None, 0.97, None, 0.99], seed=1, **options)
    return tmp_path


def rows_of(workdir: pathlib.Path) -> dict[str, dict]:
    rows = json.loads((workdir / "report.json").read_text())
    assert isinstance(rows, list)
    return {row["name"]: row for row in rows}


def test_numbers(workdir):
    report.run(make_config(), workdir)
    rows = rows_of(workdir)
    assert list(rows) == ["Synthetic only", "FedAvg from scratch", "GPT-FL (FedAvg)"]

    scratch = rows["FedAvg from scratch"]
    assert (scratch["algorithm"], scratch["init"]) == ("fedavg", "random")
    assert scratch["seeds"] == [0, 1] and scratch["rounds"] == 4
    assert scratch["accuracy_mean"] == pytest.approx(0.94)
    # Sample deviation of 0.96 and 0.92: both are 0.02 from the mean, over n - 1 = 1.
    assert scratch["accuracy_std"] == pytest.approx(math.sqrt(2) * 0.02)
    assert scratch["macro_f1_mean"] == pytest.approx(0.84)
    # 90 % after 2 rounds with seed 0 and after 4 with seed 1; 1,500 bytes a round.
    assert scratch["rounds_to_90"] == 3 and scratch["bytes_to_90"] == 4500
    assert scratch["runs_reaching_90"] == 2
    # 95 % only with seed 0.
    assert scratch["rounds_to_95"] is None and scratch["bytes_to_95"] is None
    assert scratch["runs_reaching_95"] == 1
    assert scratch["bytes_total"] == 6000
    assert scratch["gradient_diversity_mean"] == pytest.approx(0.25)
    assert scratch["seconds"] == 10

    gptfl = rows["GPT-FL (FedAvg)"]
    assert gptfl["rounds_to_90"] == 2 and gptfl["rounds_to_95"] == 2
    assert gptfl["accuracy_mean"] == pytest.approx(0.98)

    # Round 0 of the GPT-FL runs. One set of weights, hence one measurement.
    synthetic = rows["Synthetic only"]
    assert synthetic["algorithm"] == "none" and synthetic["init"] == "synthetic"
    assert synthetic["accuracy_mean"] == 0.75 and synthetic["accuracy_std"] == 0
    assert synthetic["seeds"] == [0] and synthetic["rounds_to_90"] is None
    assert synthetic["bytes_total"] == 0


def test_table_is_aligned(workdir, capsys):
    report.run(make_config(), workdir)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "method"
    table = lines[2:5]
    assert table[1].startswith("FedAvg from scratch")
    assert "94.0 ± 2.8" in table[1] and "> 4 (1 of 2 did)" in table[1]
    assert table[2].split()[-4:] == ["2", "2", "0.00300", "0.00300"]
    # Every column but the first ends at the same place as its heading.
    end = lines[0].index("accuracy %") + len("accuracy %")
    assert all(line[end - 1] != " " and line[end] == " " for line in table)
    assert f"report   {workdir / 'report.html'}" in lines


def test_numbers_of_the_clients(workdir, capsys):
    options = {"algorithm": "fedprox", "measured": True}
    make_run(workdir, "prox-s0", [0.1, None, 0.4, 0.6], seed=0, **options)
    make_run(workdir, "prox-s1", [0.1, None, 0.4, 0.7], seed=1, **options)
    for seed, after in ((0, [2, 8]), (1, [4, 9])):
        counts = {"examples": [4, 10], "right_before": [0, 5], "right_after": after}
        folder = workdir / f"federated/prox-s{seed}"
        artifacts.write_json(folder / "client_accuracy.json", counts)
    report.run(make_config(), workdir)
    rows = rows_of(workdir)
    row = rows["FedProx from scratch"]
    # Rounds 1, 2 and 3: diversity 0.1, 0.2, 0.3 and inverse 10, 5, 10 / 3.
    assert row["gradient_diversity_mean"] == pytest.approx(0.2)
    assert row["inverse_gradient_diversity_mean"] == pytest.approx(55 / 9)
    assert row["cosine_mean"] == 0.5
    assert row["update_norm_mean"] == 4 and row["update_norm_std"] == pytest.approx(1.4)
    assert row["drift"] == 9
    # The last test: 60 and 70 %, after fine-tuning 60 and 80 %.
    assert row["client_accuracy_mean"] == pytest.approx(0.65)
    assert row["personalised_accuracy_mean"] == pytest.approx(0.7)
    assert row["client_accuracy_worst_decile"] == pytest.approx(0.325)
    assert row["personalised_accuracy_worst_decile"] == pytest.approx(0.375)
    assert (row["bytes_up"], row["bytes_down"], row["bytes_total"]) == (
        *(3000, 1500),
        4500,
    )
    scratch = rows["FedAvg from scratch"]
    assert scratch["drift"] is scratch["client_accuracy_mean"] is None
    assert scratch["cosine_mean"] is scratch["update_norm_mean"] is None

    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if "worst tenth %" in line)
    (line,) = [x for x in lines[head:] if x.startswith("FedProx from scratch")]
    assert line.split()[3:] == [
        *("0.1", "0.200", "6.11", "0.500", "4.00", "±", "1.40", "9.00"),
        *("65.0", "→", "70.0", "32.5", "→", "37.5", "0.00300", "0.00150", "0"),
    ]
    assert lines[head].rstrip().endswith("dropped") and len(lines[head]) == len(line)

    methods = report.methods_of(report.load_runs(workdir))
    before, after = report.client_accuracies(methods[1], workdir)
    assert methods[1].name == "FedProx from scratch"
    assert before.tolist() == [0, 0.5, 0, 0.5]
    assert after.tolist() == [0.5, 0.8, 1, 0.9]
    page = (workdir / "report.html").read_text()
    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/svg', page)
    assert len(pictures) == len(set(pictures)) == 10
    assert "65.0 → 70.0" in page


def test_table_of_clients_has_no_empty_columns(workdir, capsys):
    report.run(make_config(), workdir)
    (head,) = [x for x in capsys.readouterr().out.splitlines() if "diversity" in x]
    assert head.split() == [
        *("method", "client", "rate", "diversity", "MB", "up", "MB", "down", "dropped")
    ]


def test_curve_of_norms_has_the_spread_over_clients(workdir):
    make_run(workdir, "prox-s0", [0.1, 0.4], algorithm="fedprox", measured=True)
    methods = report.methods_of(report.load_runs(workdir, ["prox-s0"]))
    figure = report.metric_curves(
        *(methods, "update_norm_mean", ""),
        spread=("update_norm_std", "update_norm_min"),
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 2]]
    (band,) = axes.collections
    # One standard deviation, 0.7, but not below the least norm.
    vertices = band.get_paths()[0].vertices[:, 1]
    assert sorted(set(vertices)) == pytest.approx([1.5, 2.7])


def test_many_methods_have_a_line_each_and_are_named_in_the_picture(tmp_path):
    for number in range(30):
        rate = 0.001 * (number + 1)
        init = ("random", "synthetic")[number % 2]
        make_run(tmp_path, f"m{number}", [0.1, 0.5], init=init, prox_mu=rate)
    methods = report.methods_of(report.load_runs(tmp_path))
    styles = [tuple(style.values()) for style in report._style(methods).values()]
    assert len(set(styles)) == 30
    alone = report.learning_curves(methods, None, (), alone=True)
    named = [text.get_text() for text in alone.legends[0].get_texts()]
    assert [" ".join(name.split()) for name in named] == [m.name for m in methods]
    assert "FedAvg from scratch (prox_mu 0.003)" in named
    assert not report.learning_curves(methods, None, ()).legends
    report.run(make_config(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    # In both tables, with the starting weights, which are no run of their own.
    assert page.count('class="swatch"') == 2 * 31


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        *(("fedavg", "FedAvg"), ("fedavgm", "FedAvgM"), ("scaffold", "SCAFFOLD")),
        *(("fednova", "FedNova"), ("feddyn", "FedDyn"), ("moon", "MOON")),
        ("local_only", "Local training"),
    ],
)
def test_names_of_methods(algorithm, name):
    assert report._display_name(algorithm, "random") == f"{name} from scratch"
    assert report._display_name(algorithm, "synthetic") == f"GPT-FL ({name})"


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ("natural", ": natural clients, 3 of them"),
        ("iid", ": 12 clients (IID), 3 of them"),
        ("dirichlet", ": 12 clients with label skew Dirichlet(0.5), 3 of them"),
        (
            "dirichlet_balanced",
            ": 12 clients of similar size with label skew Dirichlet(0.5), 3",
        ),
        ("shards", ": 12 clients with 2 shards of one label each, 3 of them"),
        ("quantity_skew", ": 12 clients with sizes drawn from Dirichlet(0.5), 3"),
    ],
)
def test_setting_in_words(partition, words):
    config = make_config(alpha=0.5)
    fields = config.federated.to_dict() | {
        "partition": partition,
        "shards_per_client": 2,
    }
    run = report.Run("a", {"federated": fields, "seed": 0}, [])
    method = report.Method("FedAvg", "fedavg", "random", (run,))
    assert words in report._setting([method], config)
    fields["client_test_fraction"] = 0.2
    assert "who hold out 20% of their examples, 3" in report._setting([method], config)


def test_page_is_self_contained(workdir):
    report.run(make_config(), workdir)
    page = (workdir / "report.html").read_text()
    assert 'name="viewport"' in page
    assert not re.search(r'(?:src|href)="(?!data:)', page) and "@import" not in page
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert len(pictures) == 4  # accuracy, loss, diversity, partition
    assert all(b"</svg>" in base64.b64decode(picture) for picture in pictures)
    assert "FedAvg from scratch" in page and "94.0 ± 2.8" in page
    record = json.loads((workdir / "federated/gptfl-s0/run.json").read_text())
    assert record["versions"]["jax"] in page
    assert (workdir / "report.png").read_bytes().startswith(b"\x89PNG")
    # The same numbers make the same file.
    report.run(make_config(), workdir)
    assert (workdir / "report.html").read_text() == page


def test_synthetic_beside_real(workdir, capsys):
    from PIL import Image

    samples = []
    for label in range(10):
        for index in range(2):
            file = workdir / f"synthetic/{label}/{label}_{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shade = np.full((32, 32, 3), 20 * label + index, np.uint8)
            Image.fromarray(shade).save(file)
            name = f"{label}/{file.name}"
            samples.append(artifacts.Sample(name, str(label), "a", index, None, "m"))
    artifacts.append_samples(workdir / "synthetic", samples)
    made, seen, real = examples.load(make_config(), workdir, 2).sheets.values()
    assert made.shape == seen.shape == real.shape == (10 * 34 - 2, 2 * 34 - 2, 3)
    # Row 3, column 1: the second sample of class 3, also after conversion to 8x8 grey.
    assert (made[3 * 34 + 5, 34 + 5] == 61).all()
    assert (seen[3 * 34 + 5, 34 + 5] == 61).all()
    report.run(make_config(), workdir)
    assert (
        "real, of the training clients (8x8)" in (workdir / "report.html").read_text()
    )

    # Damaged samples are shown no more, and end nothing.
    for damaged in (workdir / "synthetic").glob("*/*_0.png"):
        damaged.write_bytes(damaged.read_bytes()[:50])
    assert len(examples.load(make_config(), workdir, 2).sheets) == 2
    for damaged in (workdir / "synthetic").glob("*/*.png"):
        damaged.write_bytes(b"")
    report.run(make_config(), workdir)
    assert "report shows no synthetic examples: " in capsys.readouterr().out


def in_turns(workdir, accuracies, **options):
    """A run in each turn and seed; `accuracies` by turn, of seeds 0 and 1."""
    for turn, of_seeds in accuracies.items():
        for seed, values in enumerate(of_seeds):
            name = f"{options.get('init', 'random')}-{turn}-s{seed}"
            make_run(workdir, name, values, seed=seed, **options)
            path = workdir / "federated" / name / "run.json"
            record = json.loads(path.read_text())
            turns = {"anna": {"test_speakers": "anna"}, "bert": {"test_speakers": "b"}}
            record["config"]["compare"]["data"] = turns
            record["config"]["data"]["options"] = {**turns[turn], "other": 3}
            artifacts.write_json(path, record)


def test_turns_are_averaged_by_seed(tmp_path, capsys):
    """Seed 0 ends with 0.5 and 0.9, hence 0.7; seed 1 with 0.6 and 0.96, hence 0.78."""
    first = {"anna": ([0.1, 0.5], [0.1, 0.6]), "bert": ([0.2, 0.9], [0.2, 0.96])}
    in_turns(tmp_path, first)
    start = {"anna": ([0.3, 0.5], [0.3, 0.5]), "bert": ([0.7, 0.9], [0.7, 0.96])}
    in_turns(tmp_path, start, init="synthetic")
    report.run(make_config(), tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows) == ["Synthetic only", "FedAvg from scratch", "GPT-FL (FedAvg)"]
    row = rows["FedAvg from scratch"]
    assert row["seeds"] == [0, 1] and row["runs"] == 4
    assert row["accuracy_mean"] == pytest.approx(0.74)
    assert row["accuracy_std"] == pytest.approx(math.sqrt(2) * 0.04)
    assert row["rounds_to_90"] is None and row["runs_reaching_90"] == 2
    assert row["by_turn"]["anna"]["accuracy_mean"] == pytest.approx(0.55)
    assert row["by_turn"]["anna"]["accuracy_std"] == pytest.approx(math.sqrt(2) * 0.05)
    assert row["by_turn"]["bert"]["accuracy_mean"] == pytest.approx(0.93)
    # One stage 2, measured on the test set of each turn.
    synthetic = rows["Synthetic only"]
    assert synthetic["accuracy_mean"] == 0.5 and synthetic["accuracy_std"] == 0
    assert synthetic["runs"] == 2 and synthetic["seeds"] == [0]
    assert [each["accuracy_mean"] for each in synthetic["by_turn"].values()] == (
        [0.3, 0.7]
    )
    out = capsys.readouterr().out
    assert "> 1 (2 of 4 did)" in out and "74.0 ± 5.7" in out
    assert re.search(r"accuracy % in turn +anna +bert\n", out)
    assert re.search(r"FedAvg from scratch +55.0 ± 7.1 +93.0 ± 4.2\n", out)
    page = (tmp_path / "report.html").read_text()
    assert "A seed's number is the mean over its turns." in page
    assert "2 seeds in each of 2 turns (anna, bert)." in page
    assert page.count("accuracy % in turn") == 1

    # The curve is the mean over turns, its band the spread over seeds.
    methods = report.methods_of(report.load_runs(tmp_path))
    lines = report.learning_curves(methods, None, ()).axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [0.15, 0.74])


def test_runs_outside_of_the_turns_are_methods_of_their_own(tmp_path):
    in_turns(tmp_path, {"anna": ([0.1, 0.5],), "bert": ([0.2, 0.9],)})
    path = tmp_path / "federated" / "random-bert-s0" / "run.json"
    record = json.loads(path.read_text())
    record["config"]["data"]["options"]["test_speakers"] = "cleo"
    artifacts.write_json(path, record)
    names = [method.name for method in report.methods_of(report.load_runs(tmp_path))]
    assert len(names) == 2 and "FedAvg from scratch (test_speakers cleo)" in names


def test_synthetic_beside_real_sounds(workdir):
    write_fsdd(workdir / "data")
    write_synthetic(workdir, per_class=3)
    (workdir / "synthetic/0/0_00000.wav").write_bytes(b"no sound")
    config = make_config()
    config.data.source, config.data.folder = "fsdd", str(workdir / "data")
    config.data.options = {"test_speakers": "cleo"}
    found = examples.load(config, workdir, columns=3)
    made, real = found.sheets.values()
    assert made.shape == real.shape == (10 * 98 - 2, 3 * 98 - 2, 3)
    # To 0.14 s, that of the longest clip: 0.1 s of anna's end at 5/7 of the width.
    drawn = (real[:32, :96] != 255).any(-1).any(0)
    assert drawn[:68].all() and not drawn[70:].any()
    # What cannot be read is left out.
    assert (made[:96, 200:292] == 255).all() and (made[:96, :90] != 255).any()
    assert [(clip.label, clip.kind) for clip in found.clips] == [
        (digit, kind) for digit in "024579" for kind in ("synthetic", "real")
    ]
    wave, rate = soundfile.read(io.BytesIO(found.clips[3].wav), dtype="int16")
    recorded, _ = soundfile.read(
        workdir / "data/recordings/2_anna_0.wav", dtype="int16"
    )
    assert rate == 8000 and np.abs(wave - recorded.astype(int)).max() <= 1

    report.run(config, workdir)
    page = (workdir / "report.html").read_text()
    assert page.count("<audio controls") == 12
    assert "To hear: 6 synthetic clips and 6 real clips, of 1.5 s at most." in page
    sources_named = re.findall(r'src="([^"]{5})', page)
    assert set(sources_named) == {"data:"}


def test_methods_of_one_name_are_told_apart(workdir):
    make_run(workdir, "other-s0", [0.1, 0.5], alpha=0.5)
    report.run(make_config(), workdir)
    names = set(rows_of(workdir))
    assert "FedAvg from scratch (alpha 0.5)" in names
    assert "FedAvg from scratch (alpha 0.1)" in names
    assert "GPT-FL (FedAvg)" in names


def test_only_the_runs_named(workdir, capsys):
    config = make_config()
    config.report.runs = ("scratch-s1",)
    report.run(config, workdir)
    rows = rows_of(workdir)
    assert list(rows) == ["FedAvg from scratch"]
    assert rows["FedAvg from scratch"]["accuracy_std"] == 0
    assert "±" not in capsys.readouterr().out
    config.report.runs = ("scratch-s7",)
    with pytest.raises(UserError, match=r"scratch-s7.*is missing.*federated\.simulate"):
        report.run(config, workdir)


def test_other_targets(workdir):
    config = make_config()
    config.report.targets = (0.5, 0.975)
    configuration.validate(config)
    report.run(config, workdir)
    row = rows_of(workdir)["GPT-FL (FedAvg)"]
    assert row["rounds_to_50"] == 0 and row["bytes_to_50"] == 0
    assert row["rounds_to_97.5"] is None and row["runs_reaching_97.5"] == 1


def test_unfinished_run_is_mentioned(workdir, capsys):
    file = workdir / "federated/scratch-s0/metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    report.run(make_config(), workdir)
    said = "scratch-s0: 3 of 4 rounds so far, left out of the numbers"
    assert said in capsys.readouterr().out
    row = rows_of(workdir)["FedAvg from scratch"]
    # Of the two runs the other is finished, and counts alone.
    assert (row["rounds"], row["seeds"], row["runs"]) == (4, [1], 1)
    assert (row["accuracy_mean"], row["accuracy_std"]) == (0.92, 0)
    assert row["unfinished"] == {"scratch-s0": [3, 4]}
    page = (workdir / "report.html").read_text()
    assert "Left out, being unfinished: scratch-s0 (3 of 4 rounds)." in page


def test_a_method_with_no_finished_run_is_marked(workdir, capsys):
    for seed, done in ((0, 3), (1, 4)):
        file = workdir / f"federated/gptfl-s{seed}/metrics.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:done]))
    report.run(make_config(), workdir)
    name = "GPT-FL (FedAvg) (unfinished: 2 to 3 of 4 rounds)"
    row = rows_of(workdir)[name]
    assert row["unfinished"] == {"gptfl-s0": [2, 4], "gptfl-s1": [3, 4]}
    assert row["seeds"] == [0, 1]
    said = capsys.readouterr().out
    assert name in said and "gptfl-s0: 2 of 4 rounds so far\n" in said
    page = (workdir / "report.html").read_text()
    assert name in page and "Left out" not in page
    assert rows_of(workdir)["FedAvg from scratch"]["unfinished"] == {}


def test_rates_and_commit_are_told(workdir, capsys):
    options = {"algorithm": "fedopt", "client_learning_rate": 0.03}
    make_run(workdir, "opt", [0.1, 0.5], **options)
    make_run(workdir, "opt-2", [0.1, 0.5], server_learning_rate=0.5, **options)
    report.run(make_config(), workdir)
    rows = rows_of(workdir)
    rates = {
        name: (row["client_learning_rate"], row["server_learning_rate"])
        for name, row in rows.items()
    }
    # A server rate of 0 is the algorithm's own.
    assert rates == {
        "Synthetic only": (None, None),
        "FedAvg from scratch": (0.1, None),
        "FedOpt from scratch (server_learning_rate 0)": (0.03, 0.001),
        "FedOpt from scratch (server_learning_rate 0.5)": (0.03, 0.5),
        "GPT-FL (FedAvg)": (0.1, None),
    }
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if "diversity" in line]
    assert "client rate  server rate" in head
    record = json.loads((workdir / "federated/opt/run.json").read_text())
    if record["commit"] is not None:  # where the tests run in a checkout
        assert re.fullmatch(r"[0-9a-f]{40}\+?", record["commit"])
        page = (workdir / "report.html").read_text()
        assert f"commit {record['commit']}" in page


def test_plots_share_their_axis_and_one_legend(workdir):
    make_run(workdir, "prox-s0", [0.1] * 9, algorithm="fedprox", measured=True)
    methods = report.methods_of(report.load_runs(workdir))
    curves = [
        report.learning_curves(methods, None, ()),
        report.metric_curves(methods, "gradient_diversity", "", logarithmic=True),
        report.metric_curves(methods, "drift", ""),
        report.client_accuracy_curves(methods, "mean", ""),
    ]
    axes = [figure.axes[0] for figure in curves]
    assert {each.get_xlim() for each in axes} == {(0.0, 8.0)}
    assert len({tuple(each.get_xticks()) for each in axes}) == 1
    assert [each.get_legend() is not None for each in axes] == [True] + 3 * [False]
    # Where curves coincide, those below show at the edges of those above.
    by_pattern = {}
    for line in axes[0].lines:
        if len(line.get_xdata()):
            by_pattern.setdefault(line.get_gid(), []).append(line.get_linewidth())
    assert max(map(len, by_pattern.values())) > 1
    for widths in by_pattern.values():
        assert widths == sorted(set(widths), reverse=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "-"), (0, "0"), (0.0045, "0.00450"), (0.5, "0.500"), (1.1, "1.10")),
        *((12.0, "12.0"), (122.96, "123"), (999.6, "1,000"), (1234567.0, "1,234,567")),
    ],
)
def test_numbers_have_three_figures(value, text):
    assert report._figures(value) == text


def test_the_page_says_first_that_it_is_private(workdir):
    report.run(make_config(), workdir)
    page = (workdir / "report.html").read_text()
    start = page[page.index("<body>") :]
    assert start.index("Do not share this page as it is") < 200


def test_class_names_and_folders_may_hold_dollars(workdir):
    make_run(workdir, "$5$", [0.1, 0.5], init="w/$frac^$", measured=True)
    file = workdir / "federated" / "$5$" / "partition.json"
    content = json.loads(file.read_text())
    content["class_names"][0] = r"$\sqrt$"
    artifacts.write_json(file, content)
    report.run(make_config(), workdir)
    assert "FedAvg from w/$frac^$" in rows_of(workdir)


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match=r"no federated run here.*federated\.simulate"):
        report.run(make_config(), tmp_path)
