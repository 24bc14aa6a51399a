"""Stage 3 over several processes on this machine, and the loss of one of them."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from federated import compare, experiment, simulate
from gptfl_jax import artifacts

from .conftest import make_config

pytestmark = pytest.mark.long


class Processes:
    """The processes of one run."""

    def __init__(self, program, config, workdir, count, devices, *extra):
        workdir.mkdir(exist_ok=True)
        config_file = workdir.with_suffix(".py")
        config_file.write_text(
            "from ml_collections import ConfigDict\n\n\n"
            f"def get_config(arg=''):\n    return ConfigDict({config.to_dict()!r})\n"
        )
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.logs = [workdir.with_suffix(f".{i}.log") for i in range(count)]
        self.started = []
        for number, log in enumerate(self.logs):
            with open(log, "w") as output:
                self.started.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-m", program, f"--config={config_file}"),
                            *(f"--workdir={workdir}", f"--cpu_devices={devices}"),
                            f"--coordinator_address=localhost:{port}",
                            f"--num_processes={count}",
                            *(f"--process_id={number}", *extra),
                        ],
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
                        cwd=pathlib.Path(__file__).parents[2],
                    )
                )

    def wait(self) -> list[int]:
        """Exit codes."""
        return [process.wait(timeout=300) for process in self.started]

    def kill(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()

    def outputs(self) -> list[list[str]]:
        """Lines that each of them wrote, but for those of JAX's transport on CPUs.

        It writes one in pieces, between which another line may come.
        """
        pieces = "[Gloo]", "connected peer ranks"
        return [
            [
                line
                for line in log.read_text().splitlines()
                if not any(piece in line for piece in pieces)
            ]
            for log in self.logs
        ]


@pytest.fixture
def start():
    """Starts `Processes`, of which none outlives the test."""
    started = []

    def start(*arguments):
        started.append(Processes(*arguments))
        return started[-1]

    yield start
    for processes in started:
        processes.kill()


def assert_same(folder: pathlib.Path, expected: pathlib.Path, setting) -> None:
    """The same lines but for `seconds`, and the same weights."""
    lines, others = (
        artifacts.read_metrics(each / "metrics.jsonl") for each in (folder, expected)
    )
    assert len(lines) == len(others)
    for line, other in zip(lines, others, strict=True):
        assert list(line) == list(other)
        del line["seconds"], other["seconds"]
        numbers = [np.array(list(each.values()), float) for each in (line, other)]
        np.testing.assert_allclose(*numbers, rtol=1e-5, err_msg=str(line["step"]))
    template = {"variables": setting.learner.init(jax.random.key(0))}
    for leaf, other in zip(
        *(
            jax.tree.leaves(
                artifacts.restore_checkpoint(each / "checkpoints", template)
            )
            for each in (folder, expected)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5)


def test_two_processes_compare_as_one_does(start, tmp_path, setting, monkeypatch):
    config = make_config(cohort_size=3)
    config.compare.methods = {"fedavg": {"algorithm": "fedavg"}}
    config.compare.seeds = (0,)
    processes = start("federated.compare", config, tmp_path / "two", 2, 2)
    monkeypatch.setattr(experiment, "prepare", lambda config, source: setting)
    compare.run(config, tmp_path / "one")
    assert processes.wait() == [0, 0], processes.outputs()
    one, two = (tmp_path / each / "federated" / "fedavg-s0" for each in ("one", "two"))
    assert_same(two, one, setting)
    # The first process speaks.
    first, second = processes.outputs()
    assert first[-2].startswith("[1/1] fedavg-s0: accuracy")
    assert first[-1].startswith("next: python -m federated.report --config=")
    assert len(second) == 1
    assert second[0].endswith("on 4 CPU devices in 2 processes, this is process 1")


def kill_after(processes, victim, folder, round):
    """Kill -9 once there is a checkpoint of a round after that one.

    Returns:
        Exit codes of all, and the round of the last checkpoint.
    """
    checkpoints = folder / "checkpoints"

    def rounds():
        names = (each.name for each in checkpoints.glob("*"))
        return [int(name) for name in names if name.isdigit()]

    while max(rounds(), default=0) <= round:
        assert processes.started[victim].poll() is None, processes.outputs()
        time.sleep(0.05)
    processes.started[victim].kill()
    codes = processes.wait()
    with artifacts.Checkpoints(checkpoints, read_only=True) as saved:
        return codes, saved.latest_step()


def test_lost_processes_and_other_numbers_of_them_change_nothing(start, tmp_path):
    """Of one run, some rounds by 2 processes, by 1, by 4 and by 1 again.

    A cohort has 3 clients, which keep state: neither 2 nor 4 devices divide it.
    """

    def config(rounds):
        return make_config(
            cohort_size=3,
            algorithm="scaffold",
            run="lost",
            rounds=rounds,
            checkpoint_every=5,
            eval_every=5,
            client_learning_rate=0.01,
            diagnostics=False,
        )

    setting = experiment.prepare(config(1))
    # More rounds than there is time for.
    many, soon = config(1000), "--heartbeat_timeout_s=10"
    program, workdir = "federated.simulate", tmp_path / "workdir"
    folder = workdir / "federated" / "lost"
    died, lost = -signal.SIGKILL, 3
    remedy = "Start the same command again on all hosts"

    processes = start(program, many, workdir, 2, 1, soon)
    codes, done = kill_after(processes, 1, folder, 0)
    assert codes == [lost, died], processes.outputs()
    last_line = processes.outputs()[0][-1]
    assert "process 1 was lost" in last_line and remedy in last_line

    simulate.simulate(config(done + 5), workdir, setting)
    processes = start(program, many, workdir, 4, 1, soon)
    codes, done = kill_after(processes, 0, folder, done + 5)
    assert codes == [died, lost, lost, lost], processes.outputs()
    for lines in processes.outputs()[1:]:
        assert "process 0" in lines[-1] and remedy in lines[-1]

    simulate.simulate(config(done + 5), workdir, setting)
    simulate.simulate(config(done + 5), tmp_path / "whole", setting)
    assert_same(folder, tmp_path / "whole" / "federated" / "lost", setting)
