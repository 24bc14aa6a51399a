"""Steps of the server between rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.server_training import (
    make_server_step,
    rows_of_round,
    server_training,
)
from gptfl_jax.training import Learner, masked_mean


def make_learner():
    """Minimises (w - x)^2 / 2, whose gradient is w - mean x."""

    def loss(variables, batch, key):
        errors = (variables["params"]["w"] - batch.inputs) ** 2 / 2
        return masked_mean(errors, batch.mask), {}

    return Learner(lambda key: {"params": {"w": jnp.zeros(())}}, loss, None)


def test_rows_come_in_passes():
    rows = rows_of_round(5, 4, 2, 0, 1)
    assert rows.shape == (4, 2)
    assert sorted(rows.reshape(-1)[:5]) == [0, 1, 2, 3, 4]
    assert (rows_of_round(5, 4, 2, 0, 2) != rows).any()
    assert (rows_of_round(5, 4, 2, 1, 1) != rows).any()


@pytest.mark.parametrize("streamed", [False, True])
def test_steps_by_hand(streamed):
    """Where w is 0 and x has mean 4, steps of rate 1/2 lead to 4 (1 - 1/2^k)."""
    learner = make_learner()
    state = algorithms.fedavg(learner, LocalTraining(optax.sgd(0.1), 2)).init(
        learner.init(None), 1
    )
    inputs, labels = np.float32([1, 3, 8]), np.zeros(3, np.int32)

    def after(steps, round=1, batch_size=8, schedule=None):
        train = server_training(
            make_server_step(learner, schedule),
            inputs,
            labels,
            steps=steps,
            batch_size=batch_size,
            learning_rate=0.5,
            seed=0,
            key=jax.random.key(0),
            streamed=streamed,
        )
        return train(state, round)

    assert after(0) is state
    for steps, expected in ((1, 2.0), (2, 3.0), (3, 3.5)):
        assert float(after(steps).variables["params"]["w"]) == expected
    new = after(2)
    assert new.round == state.round and new.start == state.start
    # Half the rate after one round: 4/4, then 4/4 + 3/4.
    halved = after(2, 2, schedule=lambda done: 0.5**done)
    assert float(halved.variables["params"]["w"]) == 1.75
    # Of single examples, in their order: w <- (w + x) / 2.
    w = 0.0
    for row in rows_of_round(3, 4, 1, 0, 5).reshape(-1):
        w = (w + inputs[row]) / 2
    assert float(after(4, 5, batch_size=1).variables["params"]["w"]) == w


def test_no_examples_are_refused():
    nothing = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="no examples to train on"):
        server_training(
            *(make_server_step(make_learner()), nothing, nothing),
            **dict(steps=1, batch_size=1, learning_rate=0.1, seed=0),
            key=jax.random.key(0),
        )
