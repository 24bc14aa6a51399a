"""The report: its numbers worked by hand, its table and its page."""

import base64
import json
import math
import pathlib
import re

import numpy as np
import pytest

from federated import report
from gptfl_jax import artifacts, configuration
from gptfl_jax.configuration import UserError

from .conftest import make_config


def make_run(
    workdir: pathlib.Path,
    name: str,
    accuracies: list[float | None],
    seed: int = 0,
    **federated,
) -> None:
    """A run whose round r sent 1,000 r bytes up and 500 r down."""
    config = make_config(rounds=len(accuracies) - 1, run=name, **federated)
    config.seed = seed
    folder = workdir / "federated" / name
    artifacts.write_run_record(folder, config)
    metrics = artifacts.Metrics(folder / "metrics.jsonl")
    for step, accuracy in enumerate(accuracies):
        line = {"bytes_up": 1000 * step, "bytes_down": 500 * step}
        if step:
            line |= {"train_loss": 1.0, "gradient_diversity": 0.1 * step, "dropped": 0}
        if accuracy is not None:
            line |= {"accuracy": accuracy, "macro_f1": accuracy - 0.1, "loss": 0.5}
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
    assert scratch["seeds_reaching_90"] == 2
    # 95 % only with seed 0.
    assert scratch["rounds_to_95"] is None and scratch["bytes_to_95"] is None
    assert scratch["seeds_reaching_95"] == 1
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
    assert table[2].split()[-4:] == ["2", "2", "0.00", "0.00"]
    # Every column but the first ends at the same place as its heading.
    end = lines[0].index("accuracy %") + len("accuracy %")
    assert all(line[end - 1] != " " and line[end] == " " for line in table)
    assert f"report   {workdir / 'report.html'}" in lines


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


def test_synthetic_beside_real(workdir):
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
    made, seen, real = report.example_sheets(make_config(), workdir, 2).values()
    assert made.shape == seen.shape == real.shape == (10 * 34 - 2, 2 * 34 - 2, 3)
    # Row 3, column 1: the second sample of class 3, also after conversion to 8x8 grey.
    assert (made[3 * 34 + 5, 34 + 5] == 61).all()
    assert (seen[3 * 34 + 5, 34 + 5] == 61).all()
    report.run(make_config(), workdir)
    assert (
        "real, of the training clients (8x8)" in (workdir / "report.html").read_text()
    )


def test_methods_of_one_name_are_told_apart(workdir):
    make_run(workdir, "other-s0", [0.1, 0.5], alpha=0.5)
    report.run(make_config(), workdir)
    names = set(rows_of(workdir))
    assert "FedAvg from scratch (alpha 0.5, rounds 1)" in names
    assert "FedAvg from scratch (alpha 0.1, rounds 4)" in names
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
    assert row["rounds_to_97.5"] is None and row["seeds_reaching_97.5"] == 1


def test_unfinished_run_is_mentioned(workdir, capsys):
    file = workdir / "federated/scratch-s0/metrics.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    report.run(make_config(), workdir)
    assert "scratch-s0: 3 of 4 rounds so far" in capsys.readouterr().out
    assert rows_of(workdir)["FedAvg from scratch"]["rounds"] == 3


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match=r"no federated run here.*federated\.simulate"):
        report.run(make_config(), tmp_path)
