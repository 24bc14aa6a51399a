"""The numbers of report.json, worked by hand."""

import json
import math
import re

import numpy as np
import pytest

from federated import report
from federated.report import figures, runs, tables
from gptfl_jax import artifacts, configuration

from ..conftest import make_config
from .conftest import in_turns, make_run, rows_of

pytestmark = pytest.mark.usefixtures("quick_pictures")


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


def test_numbers_of_the_clients(workdir):
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

    lines = tables.of_clients([*rows.values()]).text(200).splitlines()
    (line,) = [x for x in lines if x.startswith("FedProx from scratch")]
    assert line.split()[3:] == [
        *("0.1", "0.200", "6.11", "0.500", "4.00", "±", "1.40", "9.00"),
        *("65.0", "→", "70.0", "32.5", "→", "37.5", "0.00300", "0.00150", "0"),
    ]
    assert "worst tenth %" in lines[0] and lines[0].endswith("  dropped")
    assert len(lines[0]) == len(line)

    methods = runs.methods_of(runs.load_runs(workdir))
    before, after = figures.client_accuracies(methods[1], workdir)
    assert methods[1].name == "FedProx from scratch"
    assert before.tolist() == [0, 0.5, 0, 0.5]
    assert after.tolist() == [0.5, 0.8, 1, 0.9]
    page = (workdir / "report.html").read_text()
    pictures = re.findall(
        r'<img class="(?:drawn|map)" alt="([^"]*)" src="data:image/svg', page
    )
    assert len(pictures) == len(set(pictures)) == 11
    assert "65.0 → 70.0" in page


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
    methods = runs.methods_of(runs.load_runs(tmp_path))
    lines = figures.learning_curves(methods, None, ()).axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), [0.15, 0.74])


def test_other_targets(workdir):
    config = make_config()
    config.report.targets = (0.5, 0.975)
    configuration.validate(config)
    report.run(config, workdir)
    row = rows_of(workdir)["GPT-FL (FedAvg)"]
    assert row["rounds_to_50"] == 0 and row["bytes_to_50"] == 0
    assert row["rounds_to_97.5"] is None and row["runs_reaching_97.5"] == 1


def test_rates_and_commit_are_told(workdir):
    options = {"algorithm": "fedopt", "client_learning_rate": 0.03}
    make_run(workdir, "opt", [0.1, 0.5], **options)
    rate = {"server_learning_rate": 0.5}
    make_run(workdir, "opt-2", [0.1, 0.5], algorithm_options=rate, **options)
    report.run(make_config(), workdir)
    rows = rows_of(workdir)
    rates = {
        name: (row["client_learning_rate"], row["server_learning_rate"])
        for name, row in rows.items()
    }
    assert rates == {
        "Synthetic only": (None, None),
        "FedAvg from scratch": (0.1, None),
        "FedOpt from scratch (server_learning_rate 0.001)": (0.03, 0.001),
        "FedOpt from scratch (server_learning_rate 0.5)": (0.03, 0.5),
        "GPT-FL (FedAvg)": (0.1, None),
    }
    assert tables.of_clients([*rows.values()]).header[1:3] == [
        *("client rate", "server rate")
    ]
    record = json.loads((workdir / "federated/opt/run.json").read_text())
    if record["commit"] is not None:  # where the tests run in a checkout
        assert re.fullmatch(r"[0-9a-f]{40}\+?", record["commit"])
        page = (workdir / "report.html").read_text()
        assert f"commit {record['commit']}" in page
