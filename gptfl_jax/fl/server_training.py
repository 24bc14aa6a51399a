"""Training at the server between rounds, on examples of its own, as synthetic ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Int, Int64, PRNGKeyArray, PyTree

from gptfl_jax import devices
from gptfl_jax.data.stored_rows import Rows
from gptfl_jax.fl.composition import ServerState
from gptfl_jax.fl.normalisation import at_server
from gptfl_jax.training import Batch, Learner, TrainState, train_step

# Beside seed and round in the generator of `rows_of_round`.
_SERVER_TRAINING = 3


def rows_of_round(
    count: int, steps: int, batch_size: int, seed: int, round: int
) -> Int64[np.ndarray, "steps batch"]:
    """Which of `count` examples the server's steps take after a round.

    Passes over all of them, each in an order of its own: none comes twice in a pass.
    """
    generator = np.random.default_rng((seed, _SERVER_TRAINING, round))
    passes = -(-steps * batch_size // count)
    order = np.concatenate([generator.permutation(count) for _ in range(passes)])
    return order[: steps * batch_size].reshape(steps, batch_size)


class ServerStep(NamedTuple):
    """A compiled step of SGD, to be shared by runs."""

    on_batch: Callable[..., Any]
    """(variables, batch, rate, rounds done before, number, key) -> variables."""
    on_rows: Callable[..., Any]
    """The same with (inputs, labels) and the rows of the batch in its place."""


def make_server_step(
    learner: Learner,
    schedule: optax.Schedule | None = None,
    *,
    batch_norm: str = "average",
) -> ServerStep:
    """The step that `server_training` takes.

    Args:
        learner: gives the loss.
        schedule: rounds done before -> factor on the learning rate; None: 1.
        batch_norm: the algorithm's policy; "local" keeps the server's norms and their
            statistics, "freeze" the statistics.
    """
    learner = at_server(learner, batch_norm)

    def step(variables, batch, rate, done, number, key):
        factor = 1.0 if schedule is None else schedule(done)
        sgd = optax.sgd(rate * factor)
        key = jax.random.fold_in(jax.random.fold_in(key, done), number)
        state = TrainState(variables, sgd.init(variables["params"]), number)
        return train_step(learner, sgd, state, batch, key)[0].variables

    def step_on_rows(variables, examples, rows, *how):
        inputs, labels = jax.tree.map(lambda x: x[rows], examples)
        return step(variables, Batch(inputs, labels, jnp.ones(rows.shape)), *how)

    return ServerStep(jax.jit(step), jax.jit(step_on_rows))


def server_training(
    step: ServerStep,
    inputs: PyTree[Rows],
    labels: Int[np.ndarray, " examples"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    key: PRNGKeyArray,
    streamed: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[ServerState, int], ServerState]:
    """(state after the aggregation of a round, its number) -> the state after SGD.

    The weights take `steps` steps, each on the mean loss of a batch; the server's
    optimizer and whatever else it keeps stay as they are. Every device takes the same.

    Args:
        step: of `make_server_step`.
        inputs, labels: the server's examples, on the host.
        steps: of a round; 0: the state as it is.
        batch_size: examples a step; all of them where there are fewer.
        learning_rate: of SGD.
        seed: of which examples are taken.
        key: of what the loss draws, as augmentation, folded with rounds done and step.
        streamed: only the examples of a step go to the devices, not all at once.
        mesh: of the clients; None: one device.

    Raises:
        ValueError: there are no examples.
    """
    if not steps:
        return lambda state, round: state
    count = len(labels)
    if not count:
        raise ValueError("the server has no examples to train on")
    batch_size = min(batch_size, count)
    # Where a round leaves its state.
    home = devices.leaders(mesh) if devices.apart(mesh) else mesh
    put = functools.partial(devices.replicate, mesh=home)
    everything = None if streamed else put((inputs, labels))
    rate = put(np.float32(learning_rate))
    key = jax.random.wrap_key_data(put(np.asarray(jax.random.key_data(key))))

    def after_round(state: ServerState, round: int) -> ServerState:
        variables, done = state.variables, put(np.int32(round - 1))
        table = rows_of_round(count, steps, batch_size, seed, round)
        # A program a step: in loops, convolutions are slow on CPUs.
        for number, rows in enumerate(table):
            how = rate, done, put(np.int32(number)), key
            if everything is None:
                batch = Batch(
                    jax.tree.map(lambda x, rows=rows: np.asarray(x[rows]), inputs),
                    np.asarray(labels[rows]),
                    np.ones(len(rows), np.float32),
                )
                variables = step.on_batch(variables, put(batch), *how)
            else:
                chosen = put(rows.astype(np.int32))
                variables = step.on_rows(variables, everything, chosen, *how)
        return state._replace(variables=variables)

    return after_round
