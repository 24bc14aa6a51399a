"""A linear head on frozen features is a linear model of these features."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax import trainable, training
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.errors import UserError
from gptfl_jax.fl import algorithms, personalisation
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.nn import BatchNorm

SIZES = (4, 9, 0, 6, 11)
FEATURES, CLASSES = 6, 3


class Body(nn.Module):
    """All before the head: a layer, batch norm and dropout."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        x = nn.Dense(FEATURES, name="dense")(inputs)
        x = BatchNorm(1e-5, name="norm")(x, train, mask)
        return nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x))


class Net(nn.Module):
    """The body and a head."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        x = Body(name="body")(inputs, train, mask)
        return nn.Dense(CLASSES, name="classifier")(x)


class Head(nn.Module):
    """The head alone."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(CLASSES, name="classifier")(inputs)


@pytest.fixture(autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def problem():
    """Clients, the learner of a head on frozen features, and that of the features."""
    rng = np.random.default_rng(0)
    count = sum(SIZES)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    inputs = rng.normal(size=(count, 4)).astype(np.float32)
    learner = training.make_learner(Net(), np.zeros(4, np.float32), trainable="head")
    variables = learner.init(jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.25, variables["frozen"]["batch_stats"])
    variables["frozen"]["batch_stats"] = moved
    body = {name: tree["body"] for name, tree in variables["frozen"].items()}
    features = Body().apply(body, inputs)
    offsets = jnp.asarray(np.concatenate([[0], np.cumsum(SIZES)]), jnp.int32)
    data = FederatedData(jnp.asarray(inputs), jnp.asarray(labels), offsets)
    alone = training.make_learner(Head(), np.zeros(FEATURES, np.float32))
    return learner, variables, data, alone, data._replace(inputs=features)


def test_parts_of_a_model_and_back():
    leaf = jnp.ones(2)
    model = {
        "params": {"body": leaf, "classifier": {"kernel": leaf}},
        "batch_stats": {"body": leaf},
    }
    parts = trainable.head_alone(model)
    assert parts["params"] == {"classifier": {"kernel": leaf}}
    chex.assert_trees_all_equal(trainable.whole(parts), model)
    assert trainable.whole(model) is model
    assert trainable.moving(parts) == {"params": parts["params"]}
    assert trainable.frozen(parts) == {"frozen": parts["frozen"]}
    assert trainable.frozen(model) == {} and trainable.moving(model) == model
    assert trainable.parted(model, model) is model
    chex.assert_trees_all_equal(trainable.parted(model, parts), parts)
    with pytest.raises(UserError, match="no layer 'classifier' at its end, but body"):
        trainable.head_alone({"params": {"body": leaf}})


def test_a_step_is_that_of_a_linear_model(problem):
    learner, variables, data, alone, features = problem
    assert training.number_of_parameters(variables) == FEATURES * CLASSES + CLASSES
    mask = (jnp.arange(len(data.labels)) < 20).astype(jnp.float32)
    key = jax.random.key(1)
    states = []
    for each, inputs in ((learner, data.inputs), (alone, features.inputs)):
        begin = variables if each is learner else trainable.moving(variables)
        optimizer = training.make_optimizer("adamw", 0.1, weight_decay=0.1)
        begin = training.init_state(
            each._replace(init=lambda _, v=begin: v), optimizer, key
        )
        batch = training.Batch(inputs, data.labels, mask)
        states.append(training.train_step(each, optimizer, begin, batch, key))
    (state, loss), (expected, expected_loss) = states
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    chex.assert_trees_all_close(
        trainable.moving(state.variables), expected.variables, rtol=1e-5
    )
    chex.assert_trees_all_equal(
        trainable.frozen(state.variables), trainable.frozen(variables)
    )
    chex.assert_trees_all_equal_structs(state.optimizer_state, expected.optimizer_state)


LOCAL = LocalTraining(optax.sgd(0.5, momentum=0.5), batch_size=4, epochs=2)
PLAIN = LocalTraining(optax.sgd(0.5), batch_size=4, epochs=2)


@pytest.mark.parametrize(
    ("algorithm", "local", "options"),
    [
        ("fedavg", LOCAL, {}),
        ("scaffold", PLAIN, {}),
        pytest.param("fedopt", LOCAL, {"execution": "vmap"}, marks=pytest.mark.long),
        pytest.param("feddyn", PLAIN, {"batch_norm": "freeze"}, marks=pytest.mark.long),
        pytest.param("local_only", LOCAL, {}, marks=pytest.mark.long),
    ],
)
def test_rounds_are_those_of_a_linear_model(problem, algorithm, local, options):
    learner, variables, data, alone, features = problem
    ends = []
    for each, begin, given in (
        (learner, variables, data),
        (alone, trainable.moving(variables), features),
    ):
        made = getattr(algorithms, algorithm)(each, local, **options)
        state = made.init(begin, len(SIZES))
        for round, cohort in enumerate(([0, 1, 4], [1, 3, 0])):
            key = jax.random.key(round)
            state, metrics = made.round(state, given, jnp.asarray(cohort), key)
        ends.append((made, state, metrics))
    (_, state, metrics), (_, expected, expected_metrics) = ends
    chex.assert_trees_all_equal(
        trainable.frozen(state.variables), trainable.frozen(variables)
    )
    state = state._replace(variables=trainable.moving(state.variables))
    state, expected = (
        (each.variables, each.optimizer_state, each.shared, each.start)
        for each in (state, expected)
    )
    chex.assert_trees_all_close(state, expected, atol=1e-5)
    chex.assert_trees_all_close(metrics, expected_metrics, atol=1e-4)
    if algorithm == "fedavg":
        assert metrics.bytes_up == 3 * 4 * (FEATURES * CLASSES + CLASSES)
        assert metrics.bytes_down == metrics.bytes_up


@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["fedavg", "local_only"])
def test_clients_are_tested_with_their_heads(problem, algorithm):
    results = []
    learner, variables, data, alone, features = problem
    for each, begin, given in (
        (learner, variables, data),
        (alone, trainable.moving(variables), features),
    ):
        made = getattr(algorithms, algorithm)(each, PLAIN)
        state = made.init(begin, len(SIZES))
        state, _ = made.round(state, given, jnp.asarray([4, 1]), jax.random.key(0))
        measure = personalisation.make_evaluation(made, each, PLAIN, lanes=2)
        chosen = np.asarray([4, 1, 3])
        results.append(measure(state, given, given, chosen, jax.random.key(1)))
    ours, expected = results
    assert expected.total.tolist() == [11, 9, 6]
    chex.assert_trees_all_equal(ours, expected)


@pytest.mark.long
def test_moon_contrasts_features_that_do_not_move(problem):
    learner, variables, data, _, _ = problem
    ends = []
    for make in (algorithms.moon, algorithms.fedavg):
        algorithm = make(learner, PLAIN)
        state = algorithm.init(variables, len(SIZES))
        for round in range(2):
            key = jax.random.key(round)
            state, _ = algorithm.round(state, data, jnp.asarray([0, 1]), key)
        ends.append(state.variables)
    chex.assert_trees_all_close(*ends, atol=1e-6)
