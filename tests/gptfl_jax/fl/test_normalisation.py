"""Batch statistics in a federation, on a linear model behind one batch norm."""

import functools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import aggregation, algorithms
from gptfl_jax.fl.cohorts import example_order
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.server_training import make_server_step, server_training
from gptfl_jax.nn import BatchNorm, GroupNorm
from gptfl_jax.training import Batch, TrainState, make_learner, train_step

COHORT = jnp.array([0, 2], jnp.int32)
KEY = jax.random.key(1)


class Model(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, inputs, train=False, mask=None):
        x = BatchNorm(epsilon=1e-5, name="norm")(inputs, train, mask)
        return flax.linen.Dense(3, name="classifier")(x)


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(0)
    sizes = np.array([6, 5, 9])
    # Every client has inputs of its own mean: their statistics differ.
    inputs = random.normal(size=(20, 4)) + np.repeat(3.0 * np.arange(3), sizes)[:, None]
    learner = make_learner(Model(), jax.ShapeDtypeStruct((4,), jnp.float32))
    data = FederatedData(
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(random.integers(0, 3, 20), jnp.int32),
        jnp.asarray([0, 6, 11, 20], jnp.int32),
    )
    return learner, learner.init(jax.random.key(0)), data


def run(problem, policy, cohort=COHORT, rounds=1):
    learner, variables, data = problem
    # One batch a client: a step, and one update of the running statistics.
    local = LocalTraining(optax.sgd(0.5), batch_size=9)
    algorithm = algorithms.fedopt(learner, local, optax.adam(0.1), batch_norm=policy)
    state = algorithm.init(variables, 3)
    for _ in range(rounds):
        state, metrics = algorithm.round(state, data, cohort, KEY)
    return algorithm, state, metrics


def statistics(problem, client):
    """Running mean and variance after one batch of all the client's examples."""
    _, _, data = problem
    rows = np.asarray(data.inputs)[slice(*data.offsets[client : client + 2].tolist())]
    return 0.1 * rows.mean(0), 0.9 + 0.1 * rows.var(0, ddof=1)


def assert_statistics(found, expected):
    np.testing.assert_allclose(found["mean"], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], expected[1], rtol=1e-5, atol=1e-6)


def test_average_weighs_statistics_and_spares_the_server_optimizer(problem):
    _, state, _ = run(problem, "average")
    expected = [
        (6 * a + 9 * b) / 15
        for a, b in zip(statistics(problem, 0), statistics(problem, 2), strict=True)
    ]
    assert_statistics(state.variables["batch_stats"]["norm"], expected)


def test_local_norms_stay_with_their_client(problem):
    algorithm, state, metrics = run(problem, "local")
    _, variables, _ = problem
    for part in ("params", "batch_stats"):
        for name, value in variables[part]["norm"].items():
            np.testing.assert_array_equal(state.variables[part]["norm"][name], value)
    for client in (0, 2):
        mine = algorithm.start(state, client)
        assert_statistics(mine["batch_stats"]["norm"], statistics(problem, client))
        # Scale and bias were trained, and the classifier is the server's.
        assert (mine["params"]["norm"]["scale"] != 1).any()
        np.testing.assert_array_equal(
            mine["params"]["classifier"]["kernel"],
            state.variables["params"]["classifier"]["kernel"],
        )
    newcomer = algorithm.start(state, 1)
    np.testing.assert_array_equal(newcomer["batch_stats"]["norm"]["mean"], 0)
    # Only the classifier travels: 4 x 3 weights and 3 biases of 4 bytes, 2 clients.
    assert metrics.bytes_up == metrics.bytes_down == 2 * 15 * 4


def test_local_norms_go_on_where_the_client_left_them(problem):
    algorithm, state, _ = run(problem, "local", jnp.array([0], jnp.int32), rounds=2)
    mean, variance = statistics(problem, 0)
    expected = 0.9 * mean + mean, 0.9 * variance + (variance - 0.9)
    assert_statistics(algorithm.start(state, 0)["batch_stats"]["norm"], expected)


@pytest.mark.parametrize("execution", ["packed", "vmap"])
def test_neither_noise_nor_weight_decay_moves_the_norms_of_the_server(
    problem, execution
):
    learner, variables, data = problem
    algorithm = algorithms.fedopt(
        learner,
        LocalTraining(optax.sgd(0.5), batch_size=9),
        optax.adamw(0.1, weight_decay=0.5),
        aggregation=aggregation.clipped_mean(1e-3, noise_multiplier=1e3),
        batch_norm="local",
        execution=execution,
    )
    state, metrics = algorithm.round(algorithm.init(variables, 3), data, COHORT, KEY)
    for part in ("params", "batch_stats"):
        for name, value in variables[part]["norm"].items():
            np.testing.assert_array_equal(state.variables[part]["norm"][name], value)
    # Adam starts with the sign of the noise; what is left of the weight is 0.95.
    found, kernel = (
        v["params"]["classifier"]["kernel"] for v in (state.variables, variables)
    )
    np.testing.assert_allclose(np.abs(found - 0.95 * kernel), 0.1, rtol=1e-4)
    assert metrics.bytes_up == metrics.bytes_down == 2 * 15 * 4


@pytest.mark.parametrize("policy", ["average", "local", "freeze"])
def test_a_step_of_the_server_is_a_round_of_its_examples_owner(problem, policy):
    learner, variables, data = problem
    local = LocalTraining(optax.sgd(0.5), batch_size=6)
    algorithm = algorithms.fedavg(learner, local, batch_norm=policy)
    state = algorithm.init(variables, 3)
    expected, _ = algorithm.round(state, data, jnp.array([0], jnp.int32), KEY)
    step = server_training(
        make_server_step(learner, batch_norm=policy),
        *(np.asarray(data.inputs[:6]), np.asarray(data.labels[:6])),
        **dict(steps=1, batch_size=6, learning_rate=0.5, seed=0, key=KEY),
    )
    found, expected = step(state, 1).variables, expected.variables
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        same = (
            found["batch_stats"]["norm"][name] == variables["batch_stats"]["norm"][name]
        )
        assert bool(same.all()) == (policy != "average")


def test_an_unknown_policy_is_refused_at_the_server(problem):
    with pytest.raises(ValueError, match="batch_norm 'frozen': takes 'average', "):
        make_server_step(problem[0], batch_norm="frozen")


def test_freeze_trains_with_the_running_statistics(problem):
    _, variables, data = problem
    _, state, _ = run(problem, "freeze", jnp.array([0], jnp.int32))
    for name, value in variables["batch_stats"]["norm"].items():
        np.testing.assert_array_equal(
            state.variables["batch_stats"]["norm"][name], value
        )
    # Mean 0 and variance 1 leave the inputs as they are, but for epsilon: the update
    # has the sign of a linear model's gradient, all that Adam leaves of it in step 1.
    x = np.asarray(data.inputs[:6], np.float64) / np.sqrt(1 + 1e-5)
    kernel, bias = (variables["params"]["classifier"][k] for k in ("kernel", "bias"))
    logits = x @ np.asarray(kernel, np.float64) + np.asarray(bias)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(6), np.asarray(data.labels[:6])] -= 1
    moved = state.variables["params"]["classifier"]["kernel"] - kernel
    np.testing.assert_allclose(moved, -0.1 * np.sign(x.T @ p), atol=1e-4)


class FlaxModel(flax.linen.Module):
    """With Flax's batch norm, told where it is made or called how to normalise."""

    told: str

    @flax.linen.compact
    def __call__(self, inputs, train=False):
        norm = functools.partial(flax.linen.BatchNorm, epsilon=1e-5, name="norm")
        if self.told == "constructor":
            x = norm(use_running_average=not train)(inputs)
        elif self.told == "argument":
            x = norm()(inputs, not train)
        else:
            x = norm()(x=inputs, use_running_average=not train)
        return flax.linen.Dense(3, name="classifier")(x)


@pytest.mark.parametrize("told", ["constructor", "argument", "keyword"])
def test_freeze_takes_the_batch_norm_of_flax(problem, told):
    _, variables, data = problem
    _, expected, _ = run(problem, "freeze")
    learner = make_learner(FlaxModel(told), jax.ShapeDtypeStruct((4,), jnp.float32))
    _, state, _ = run((learner, variables, data), "freeze")
    for x, y in zip(
        *(jax.tree.leaves(s.variables) for s in (state, expected)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


class GroupModel(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, inputs, train=False, mask=None):
        x = GroupNorm(num_groups=2, epsilon=1e-5, name="norm")(inputs)
        return flax.linen.Dense(3, name="classifier")(x)


def test_group_norm_has_nothing_to_average_and_sees_no_padding(problem):
    """Clients equal central training on their batches, which nothing has padded."""
    _, _, data = problem
    learner = make_learner(GroupModel(), jax.ShapeDtypeStruct((4,), jnp.float32))
    variables, optimizer = learner.init(jax.random.key(0)), optax.sgd(0.5)
    assert set(variables) == {"params"}
    # Client 0 has a batch of 4 and one of 2, client 2 two of 4 and one of 1.
    step = jax.jit(functools.partial(train_step, learner, optimizer))
    trained = []
    for client, size in ((0, 6), (2, 9)):
        order = example_order(KEY, client, 0, size)
        rows = int(data.offsets[client]) + np.asarray(order)
        state = TrainState(variables, optimizer.init(variables["params"]), 0)
        for batch in np.split(rows, range(4, size, 4)):
            batch = Batch(data.inputs[batch], data.labels[batch], np.ones(len(batch)))
            state, _ = step(state, batch, KEY)
        trained.append(state.variables)
    expected = jax.tree.map(lambda a, b: (6 * a + 9 * b) / 15, *trained)
    for execution in ("packed", "vmap"):
        local = LocalTraining(optimizer, batch_size=4)
        algorithm = algorithms.fedavg(learner, local, execution=execution)
        state, _ = algorithm.round(algorithm.init(variables, 3), data, COHORT, KEY)
        found = state.variables
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
