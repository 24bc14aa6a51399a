"""Ctrl-C and SIGTERM in stages 2 and 3: what was done is saved, and goes on."""

import pathlib
import re
import signal

import pytest

from gptfl_jax import artifacts

from ..programs import Programs

CONFIG = """
from gptfl_jax import configuration

def get_config(arg=""):
    config = configuration.default_config("data", "model", "train", "federated")
    config.model.options = {"width": 4, "depth": 1}
    config.train.update(
        {"data": "real", "epochs": 60, "checkpoint_every": 1000, "batch_size": 256,
         "validation_fraction": 0.0}
    )
    config.federated.update(
        {"partition": "dirichlet", "num_clients": 12, "cohort_size": 3, "rounds": 90,
         "partition_options": {"min_examples": 5}, "eval_every": 4,
         "checkpoint_every": 1000, "run": "run"}
    )
    return config
"""
STAGES = {
    "train.downstream": ("pretrain", 60, "epoch"),
    "federated.simulate": ("federated/run", 90, "round"),
}


def lines(folder: pathlib.Path) -> list[dict]:
    metrics = artifacts.read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]


@pytest.fixture(params=STAGES)
def stage(request, repository, tmp_path):
    """A program, its arguments but for the workdir, and what STAGES has of it."""
    (tmp_path / "config.py").write_text(CONFIG)
    programs = Programs(request.param, repository, tmp_path / "log")
    yield programs, f"--config={tmp_path / 'config.py'}", *STAGES[request.param]
    programs.close()


@pytest.mark.long
def test_what_is_done_is_saved_and_goes_on(stage, tmp_path):
    programs, config, name, last, step = stage
    arguments = config, "--cpu_devices=1"
    programs.complete(*arguments, f"--workdir={tmp_path / 'whole'}")
    stopped = tmp_path / "stopped"
    folder = stopped / name
    before = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        found = programs.run(
            *(*arguments, f"--workdir={stopped}"),
            kill_at=before + 8,
            file=folder / "metrics.jsonl",
            number=number,
        )
        said = programs.log.read_text()
        assert found == code, said
        assert "stopping after this" in said and "Traceback" not in said
        done = re.search(rf"saved after {step} (\d+) of {last}; the same command", said)
        with artifacts.Checkpoints(folder / "checkpoints", read_only=True) as saved:
            assert saved.latest_step() == int(done[1]) >= before + 6
        before = int(done[1])
        assert lines(folder)[-1]["step"] == before < last
    programs.complete(*arguments, f"--workdir={stopped}")
    assert re.search(
        rf"(on|continuing) after {step} {before}\b", programs.log.read_text()
    )
    assert lines(folder) == lines(tmp_path / "whole" / name)
