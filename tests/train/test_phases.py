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


def test_checkpoints_belong_to_all_but_the_length_and_the_tests():
    settings = {"width": 3, "line_steps": 7, "log_every": 1, "test_samples": 0}
    config = ConfigDict({"seed": 1, "lines": settings})
    assert phases.identity(config, "lines") == {
        "config": {"seed": 1, "lines": {"width": 3}}
    }
    assert "line_steps" in config.lines  # the config itself stays as it was
