import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from federated import experiment, run_writer, series, sweep
from federated.sweep import Share
from gptfl_jax import artifacts, configuration
from gptfl_jax.errors import UserError

from ..conftest import make_config


def small_sweep():
    config = make_config(rounds=1, partition="iid")
    config.model.name, config.model.options = "logistic_regression", {}
    config.compare.grid = ("federated.rounds=1,4",)  # of one program
    config.compare.seeds = (0, 1)
    configuration.validate(config)
    return config


@pytest.fixture
def without_a_test_set(monkeypatch):
    """Reading the test set fails, its labels being those of no class."""
    load = experiment.load

    def poisoned(config):
        source = load(config)
        test = source.test._replace(labels=np.full_like(source.test.labels, -1))
        return source._replace(test=test)

    monkeypatch.setattr(experiment, "load", poisoned)
    return load


def test_a_sweep_is_measured_on_examples_held_out(
    tmp_path, without_a_test_set, capsys, monkeypatch
):
    config = small_sweep()
    rows = sweep.run(config, tmp_path)
    root = tmp_path / "sweep"
    content = json.loads((root / "sweep.json").read_text())
    assert content["points"] == rows
    assert content["measured_on"] == "20 % of the clients' examples, held out"
    best, worst = rows
    assert best["values"] == {"federated.rounds": "4"}
    assert (best["rank"], worst["rank"]) == (1.0, 2.0)
    for row in rows:
        last = [
            json.loads(path.read_text().splitlines()[-1])["accuracy"]
            for path in sorted(root.glob(f"federated/{row['name']}-s?/metrics.jsonl"))
        ]
        assert row["by_seed"] == last
        assert row["accuracy_mean"] == pytest.approx(np.mean(last))
        assert row["accuracy_std"] == pytest.approx(np.std(last, ddof=1))
    out = capsys.readouterr().out
    assert "  --config.federated.rounds=4\n" in out
    page = (root / "sweep.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 1
    assert 'alt="Accuracy over rounds' in page

    # Started again with another seed, it makes that one's runs and no others.
    files = sorted(root.glob("federated/*/metrics.jsonl"))
    before = [path.stat().st_mtime_ns for path in files]
    config.compare.seeds = (0, 1, 2)
    again = sweep.run(config, tmp_path)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert [len(row["by_seed"]) for row in again] == [3, 3]
    assert again[0]["by_seed"][:2] == best["by_seed"]
    # To tabulate, no run is needed.
    monkeypatch.setattr(series, "run", None)
    assert sweep.run(config, tmp_path, Share(0, 0)) == again


def test_what_is_held_out_is_no_clients(without_a_test_set):
    config = small_sweep()
    whole = without_a_test_set(config)
    source = sweep.held_out(config)
    assert len(source.train.labels) + len(source.test.labels) == len(whole.train.labels)
    share = np.bincount(source.test.labels) / np.bincount(whole.train.labels)
    assert (abs(share - 0.2) < 0.01).all()
    ours = {row.tobytes() for row in source.test.inputs}
    assert not ours & {row.tobytes() for row in source.train.inputs}
    config.compare.validation_fraction = 0.0
    assert (sweep.held_out(config).test.labels == -1).all()


def test_a_start_that_saw_real_examples_is_refused(workdir):
    config = small_sweep()
    config.compare.grid = ("federated.init=random,synthetic",)
    record = {"config": {"train": {"data": "real"}}}
    artifacts.write_json(workdir / "pretrain" / "run.json", record)
    with pytest.raises(UserError, match="'real', hence on examples that are held out"):
        sweep.run(config, workdir)


def test_failed_points_come_last_and_none_is_an_error(tmp_path, monkeypatch):
    config = small_sweep()
    failed = {"all": run_writer.CohortFailed("all NaN")}
    monkeypatch.setattr(series, "run", lambda *_: failed)
    with pytest.raises(UserError, match="no point of the sweep has all its runs"):
        sweep.run(config, tmp_path)
    page = (tmp_path / "sweep" / "sweep.html").read_text()
    assert "2 points have not all runs" in page
    # What is in the folder of a refused run may be of another config.
    failed["other"] = UserError("is 1 there and 2 here")
    with pytest.raises(UserError, match="1 of 4 runs were refused: other. Mend"):
        sweep.run(config, tmp_path)


def test_shares_are_neighbours_and_together_all():
    configs = [*range(7)]
    parts = [Share(number, 3).of(configs) for number in range(3)]
    assert parts == [[0, 1], [2, 3], [4, 5, 6]]
    assert Share().of(configs) == configs and Share(0, 0).of(configs) == []


def test_flags_become_fields():
    flags = sweep._own_flags(
        [
            *("--config=digits", "--grid", "federated.init=random,synthetic"),
            *("--workdir=w", "--grid=federated.rounds=1,2", "--seeds=3"),
            *("--search=random", "--processes", "2"),
        ]
    )
    assert flags.processes == 2 and flags.share is None
    assert flags.rest == [
        *("--config=digits", "--workdir=w"),
        "--config.compare.grid=('federated.init=random,synthetic', "
        "'federated.rounds=1,2')",
        "--config.compare.seeds=(0, 1, 2)",
        "--config.compare.trials=20",
    ]
    config = make_config()
    texts = [
        tuple(flag.removeprefix("--config.").split("=", 1)) for flag in flags.rest[2:]
    ]
    configuration.set_texts(config, texts)
    assert config.compare.grid == (
        *("federated.init=random,synthetic", "federated.rounds=1,2"),
    )
    for argv, message in {
        ("--grid",): "--grid is given no value",
        ("--seeds=0",): "--seeds=0: takes a whole number from 1",
        ("--search=bayes",): "takes grid or random",
        ("--search=grid", "--trials=3"): "--trials: goes with --search=random",
    }.items():
        with pytest.raises(UserError, match=message):
            sweep._own_flags(argv)


def test_a_process_for_each_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f")
    assert sweep.gpus() == ["3", "GPU-7f"]
    # Each process writes down what it was started with.
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "name = sys.argv[-1].replace('/', '_')\n"
        f"pathlib.Path({str(tmp_path)!r}, name).write_text(\n"
        "    os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "sys.exit(sys.argv[-1] == '--share=2/3' and 2)\n"
    )
    monkeypatch.setattr(sweep, "_MODULE", [str(program)])
    with pytest.raises(UserError, match="process 2 of 3 has failed"):
        sweep._in_processes(["--workdir=w"], 3)
    said = {p.name: p.read_text() for p in pathlib.Path(tmp_path).glob("--share*")}
    assert said == {
        "--share=0_3": "3",
        "--share=1_3": "GPU-7f",
        "--share=2_3": "3",
    }


@pytest.mark.long
def test_two_processes_find_what_one_finds(tmp_path):
    numbers = []
    for count in (1, 2):
        workdir = tmp_path / str(count)
        argv = [
            *(sys.executable, "-m", "federated.sweep", "--config=digits"),
            *(f"--workdir={workdir}", "--grid=federated.client_learning_rate=0.03,0.3"),
            *("--grid=federated.algorithm=fedavg,fedprox", "--seeds=1"),
            *("--config.federated.rounds=2", f"--processes={count}"),
            *("--config.model.name=logistic_regression", "--config.model.options={}"),
            "--cpu_devices=1",
        ]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        numbers.append(json.loads((workdir / "sweep" / "sweep.json").read_text()))
    assert numbers[0] == numbers[1]
    assert len(numbers[0]["points"]) == 4
