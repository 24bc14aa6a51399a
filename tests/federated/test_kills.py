"""federated.simulate as a user runs it, killed at moments of each kind.

Every algorithm with state of its own at the clients, since that state is the hardest
to lose and to keep.
"""

import random

import jax
import numpy as np
import pytest

from federated import experiment, simulate
from gptfl_jax import artifacts

from ..programs import Programs
from .conftest import lines_without_seconds, make_config

# The start finds what a kill in a round has left.
KINDS = ("round", "start", "checkpoint", "between checkpoints")
EVERY = 2

CONFIG = """
from gptfl_jax import configuration

def get_config(arg=""):
    config = configuration.default_config("data", "model", "federated")
    config.model.name = {model!r}
    config.model.options = {options!r}
    config.federated.update({federated!r})
    return config
"""

METHODS = {
    "scaffold-path": {"algorithm": "scaffold"},
    "scaffold-start": {
        "algorithm": "scaffold",
        "algorithm_options": {"control": "start"},
    },
    "feddyn": {"algorithm": "feddyn"},
    "moon": {"algorithm": "moon"},
    "local_only": {"algorithm": "local_only"},
    "fedbn": {"algorithm": "fedopt", "batch_norm": "local"},
}


@pytest.fixture(scope="module")
def programs(repository, tmp_path_factory):
    log = tmp_path_factory.mktemp("kills") / "log"
    with pytest.MonkeyPatch.context() as patch:
        # Every method compiles programs of its own, which run for seconds.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        programs = Programs("federated.simulate", repository, log)
    yield programs
    programs.close()


def final_state(config, folder):
    """All arrays of the last checkpoint, one after another."""
    setting = experiment.prepare(config)
    data = experiment.deal(config, setting.source.train)
    variables = setting.learner.init(jax.random.key(0))
    with artifacts.Checkpoints(
        folder / "checkpoints", read_only=True, best="accuracy"
    ) as checkpoints:
        start, state = simulate._start(setting, data, variables, checkpoints)
    assert start.round == config.federated.rounds
    own = state.own.pack()
    assert len(own.ids) > config.federated.cohort_size
    leaves = jax.tree.leaves((state._replace(own=()), own))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


@pytest.mark.long
@pytest.mark.parametrize("fields", METHODS.values(), ids=METHODS)
def test_kills(programs, tmp_path, fields):
    # Few clients, so that they take part again and their state counts.
    config = make_config(
        rounds=6 * len(KINDS), eval_every=3, checkpoint_every=EVERY, run="run", **fields
    )
    if "batch_norm" in fields:
        config.model.name = "resnet"
        config.model.options = {"depth": 8, "width": 4, "norm": "batch"}
    file = tmp_path / "config.py"
    file.write_text(
        CONFIG.format(
            model=config.model.name,
            options=config.model.options.to_dict(),
            federated=config.federated.to_dict(),
        )
    )

    def arguments(name):
        return f"--config={file}", f"--workdir={tmp_path / name}", "--cpu_devices=1"

    programs.complete(*arguments("whole"))
    draw = random.Random(f"{fields}")
    folder = tmp_path / "killed" / "federated" / "run"
    for kind in KINDS:
        log = folder / "metrics.jsonl"
        done = log.read_bytes().count(b"\n") if log.exists() else 0
        # A line a round, behind that of round 0.
        due = EVERY * (done // EVERY + 1) + 1
        kill_at, delay_s = {
            "start": (0, draw.uniform(0, 2)),
            "round": (done + draw.randrange(1, 4), draw.uniform(0, 0.03)),
            "checkpoint": (due, draw.uniform(0, 0.01)),
            "between checkpoints": (due + 1, 0),
        }[kind]
        code = programs.run(
            *arguments("killed"), kill_at=kill_at, file=log, delay_s=delay_s
        )
        assert code == -9, programs.log.read_text()
    programs.complete(*arguments("killed"))
    whole = tmp_path / "whole" / "federated" / "run"
    assert lines_without_seconds(folder) == lines_without_seconds(whole)
    np.testing.assert_allclose(
        final_state(config, folder), final_state(config, whole), rtol=0, atol=1e-6
    )
