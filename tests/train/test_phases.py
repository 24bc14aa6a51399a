"""A phase of training on a line: killed, resumed, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.interruption import Interrupted
from train import phases


class Killed(BaseException):
    """Ends a run as a kill does: nothing catches it."""


def train(folder, num_steps=7, slope=3, scale=1.0):
    """Fits the slope of a noisy plane to ones."""
    settings = {"line_steps": num_steps, "line_learning_rate": 0.1}
    settings |= {"checkpoint_every": 2, "log_every": 1, "ema_decay": 0.998}
    return phases.train_phase(
        "line",
        folder,
        "lines",
        ConfigDict(settings),
        {"model": "line"},
        Mesh(np.asarray(jax.devices()[:1]), ("data",)),
        {"slope": jnp.zeros(slope)},
        lambda params, x, key: (
            (x @ params["slope"] - x.sum(-1) + jax.random.normal(key)) ** 2
        ).mean(),
        jnp.float32(scale),
        lambda scale, key: scale * jax.random.normal(key, (8, slope)),
        jax.random.key(0),
    )


def test_a_killed_phase_goes_on_to_the_same_result(tmp_path, monkeypatch):
    expected = train(tmp_path / "whole")
    write = artifacts.Metrics.write
    for last in (1, 5):

        def write_until(self, step, last=last, **scalars):
            write(self, step, **scalars)
            if step == last:
                raise Killed

        monkeypatch.setattr(artifacts.Metrics, "write", write_until)
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    monkeypatch.undo()
    result = train(tmp_path / "killed")
    np.testing.assert_array_equal(result["slope"], expected["slope"])
    assert np.linalg.norm(result["slope"]) > 0.01
    killed, whole = (
        artifacts.read_metrics(tmp_path / folder / "line" / "metrics.jsonl")
        for folder in ("killed", "whole")
    )
    assert [line["step"] for line in killed] == list(range(1, 8))
    assert [x["loss"] for x in killed] == [x["loss"] for x in whole]
    # A finished phase is not trained again, and goes on when asked for more.
    again = train(tmp_path / "killed")
    np.testing.assert_array_equal(again["slope"], expected["slope"])
    assert (train(tmp_path / "killed", 9)["slope"] != expected["slope"]).any()


def test_ctrl_c_saves_the_step_that_is_done(tmp_path, monkeypatch, told):
    expected = train(tmp_path / "whole")
    write = artifacts.Metrics.write

    def write_and_tell(self, step, **scalars):
        write(self, step, **scalars)
        if step == 3:
            told.set()

    monkeypatch.setattr(artifacts.Metrics, "write", write_and_tell)
    with pytest.raises(Interrupted, match="line is saved after step 3 of 7; the same"):
        train(tmp_path / "stopped")
    told.clear()
    folder = tmp_path / "stopped" / "line"
    with artifacts.Checkpoints(folder / "checkpoints", read_only=True) as saved:
        assert saved.latest_step() == 3
    result = train(tmp_path / "stopped")
    np.testing.assert_array_equal(result["slope"], expected["slope"])
    steps = [line["step"] for line in artifacts.read_metrics(folder / "metrics.jsonl")]
    assert steps == list(range(1, 8))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    with pytest.raises(UserError, match="line is nan.*config.lines.line_learning_rate"):
        train(tmp_path, 3, scale=np.nan)


def test_a_phase_of_one_step(tmp_path):
    train(tmp_path, 1)


def test_checkpoints_belong_to_all_but_the_length_and_the_tests():
    settings = {"width": 3, "line_steps": 7, "log_every": 1, "test_samples": 0}
    config = ConfigDict({"seed": 1, "lines": settings})
    assert phases.identity(config, "lines") == {
        "config": {"seed": 1, "lines": {"width": 3}}
    }
    assert "line_steps" in config.lines  # the config itself stays as it was


def test_a_rehearsal_lowers_the_step_and_trains_nothing():
    settings = ConfigDict({"line_steps": 7, "line_learning_rate": 0.1})
    settings.ema_decay = 0.998
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    rehearsal = phases.Rehearsal("lines", settings, mesh)
    params, key = {"slope": jnp.zeros(3)}, jax.random.key(0)

    def loss(params, x, key):
        return ((x @ params["slope"] - 1) ** 2).mean()

    def batch(scale, key):
        return scale * jax.random.normal(key, (8, 3))

    given = {"loss": loss, "data": jnp.float32(1), "batch": batch, "key": key}
    assert rehearsal("line", params=params, **given) is params
    plan = rehearsal.plan([("data", "a line")])
    assert plan.facts == [("data", "a line"), ("line", "3 parameters, 7 steps")]
    (work,) = plan.work
    # Two products of 8 rows with 3 numbers, forward and back, and a few more.
    assert work.times == 7 and 2 * 2 * 8 * 3 <= work.flops < 300
    state, data = (each.arrays for each in plan.resident)
    assert state.ema["slope"].shape == (3,) and data.shape == ()
    compiled = plan.programs[0].lowered.compile()
    train_step, optimizer = phases.make_step("line", settings, mesh, loss, batch, key)
    results = []
    for run in (compiled, train_step):
        begin = phases.TrainState(*(jax.tree.map(jnp.copy, params) for _ in "ab"), ())
        begin = begin._replace(optimizer=optimizer.init(begin.params))
        after, value = run(begin, jnp.float32(1), jnp.int32(1))
        assert value == 1
        results.append(jax.tree.leaves(after))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
