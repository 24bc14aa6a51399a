"""All programs one after the other, as `make demo` runs them, on a tiny setting."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from ..small_generators import save_stable_diffusion
from .conftest import lines_without_seconds

# One epoch, one step, one client: what is slow at this size is compilation.
OVERRIDES = {
    "model.options": {"width": 4, "depth": 1},
    "generate.lora": "",  # it is of the shipped generator
    "generate.samples_per_class": 2,
    "generate.num_steps": 2,
    "generate.batch_size": 20,
    "train.epochs": 1,
    "train.batch_size": 8,
    "federated.rounds": 60,
    "federated.cohort_size": 2,
    "federated.local_epochs": 1,
    "federated.batch_size": 4,
    "federated.init": "synthetic",
    "federated.learning_rate_schedule": "constant",
    "federated.eval_every": 10,
    "federated.checkpoint_every": 5,
    "compare.methods": {"killed": {}, "whole": {}, "scratch": {"init": "random"}},
    "compare.seeds": (0,),
}


@pytest.fixture(scope="module")
def programs(tmp_path_factory, repository):
    """Starts a program on the tiny setting; more overrides may be given."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_stable_diffusion(folder / "generator", seed=0)
    workdir = folder / "run"

    def start(module: str, **overrides) -> subprocess.Popen:
        fields = {**OVERRIDES, "generate.model": str(folder / "generator")}
        fields |= {name.replace("__", "."): v for name, v in overrides.items()}
        command = [
            *(sys.executable, "-m", module, "--config=configs/digits.py"),
            *(f"--config.{name}={value}" for name, value in fields.items()),
            *(f"--workdir={workdir}", "--cpu_devices=1"),
        ]
        return subprocess.Popen(
            command,
            cwd=repository,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MPLBACKEND": "agg"},
        )

    return workdir, start


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
def test_whole_pipeline(programs):
    workdir, start = programs
    # Each stage says which command makes what it lacks.
    output = finish(start("federated.simulate"), code=2)
    assert "Traceback" not in output
    assert f"python -m train.downstream --config=... --workdir={workdir}" in output

    finish(start("generate.prompts"))
    finish(start("generate.images"))
    finish(start("train.downstream"))

    # Killed in the middle, it goes on as part of the comparison.
    killed = start("federated.simulate", federated__run="killed-s0")
    checkpoints = workdir / "federated" / "killed-s0" / "checkpoints"
    wait_for(lambda: (checkpoints / "5").is_dir(), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()

    output = finish(start("federated.compare"))
    assert output.startswith("federated.compare: configs/digits.py -> ")
    assert output.count("after 60 rounds") == 3
    root = workdir / "federated"
    assert lines_without_seconds(root / "killed-s0") == lines_without_seconds(
        root / "whole-s0"
    )

    output = finish(start("federated.report"))
    assert "Synthetic only" in output and "FedAvg from scratch" in output
    rows = {row["name"]: row for row in read_report(workdir)}
    assert set(rows) == {"Synthetic only", "FedAvg from scratch", "GPT-FL (FedAvg)"}
    assert rows["GPT-FL (FedAvg)"]["rounds"] == 60
    page = (workdir / "report.html").read_text()
    places = [
        page.index(f"python -m {stage} --config=")
        for stage in ("generate.prompts", "generate.images", "train.downstream")
    ]
    assert places == sorted(places) and "as generated" in page


def read_report(workdir: pathlib.Path) -> list[dict]:
    return json.loads((workdir / "report.json").read_text())
