"""A linear head federated on the features of stage 2."""

import chex
import jax
import numpy as np

from federated import experiment, simulate
from gptfl_jax import artifacts

from .conftest import make_config


def test_a_head_alone_is_trained_sent_and_saved_in_a_whole_model(workdir, setting):
    options = {"init": "synthetic", "trainable": "head"}
    of_heads = experiment.prepare(make_config(**options))
    simulate.simulate(make_config(**options, rounds=2), workdir, of_heads)
    # Goes on after round 2, and ends as a run in one go.
    last = simulate.simulate(make_config(**options, rounds=4), workdir, of_heads)
    straight = make_config(**options, rounds=4, run="straight")
    assert simulate.simulate(straight, workdir, of_heads)["loss"] == last["loss"]
    # Of 10 classes, on 4 x 4 pixels of 4 channels; 3 clients in each of 4 rounds.
    assert last["bytes_up"] == last["bytes_down"] == 4 * (64 * 10 + 10) * 3 * 4
    template = {"variables": setting.learner.init(jax.random.key(0))}
    before, after = (
        artifacts.restore_checkpoint(folder / "checkpoints", template)["variables"]
        for folder in (
            workdir / "pretrain",
            workdir / "federated" / "fedavg-synthetic-s0",
        )
    )
    before, after = before["params"], after["params"]
    heads = [params.pop("classifier")["kernel"] for params in (before, after)]
    assert np.abs(heads[0] - heads[1]).max() > 1e-3
    chex.assert_trees_all_equal(before, after)
