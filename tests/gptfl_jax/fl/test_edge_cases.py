"""Cohorts that are hardly any: clients with no or one example, overflow, one class."""

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import aggregation, algorithms, composition
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.nn import BatchNorm
from gptfl_jax.training import make_learner

from .conftest import SIZES, assert_close, combine
from .rounds import EXECUTIONS, mean_update, run, sgd

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOCAL = LocalTraining(optax.sgd(0.3), batch_size=8, epochs=2)
TWO_EXECUTIONS = ({"execution": "packed"}, {"execution": "vmap", "lanes": 2})


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda l, **o: algorithms.fedavgm(l, LOCAL, weighting="uniform", **o),
            id="fedavgm",
        ),
        pytest.param(
            lambda l, **o: algorithms.scaffold(l, LOCAL, weighting="uniform", **o),
            id="scaffold path",
        ),
        pytest.param(
            lambda l, **o: algorithms.scaffold(l, LOCAL, control="start", **o),
            id="scaffold start",
        ),
        pytest.param(lambda l, **o: algorithms.fednova(l, LOCAL, **o), id="fednova"),
        pytest.param(
            lambda l, **o: algorithms.feddyn(
                l, LOCAL, alpha=0.3, weighting="uniform", **o
            ),
            id="feddyn",
        ),
        pytest.param(lambda l, **o: algorithms.moon(l, LOCAL, **o), id="moon"),
        pytest.param(
            lambda l, **o: algorithms.local_only(l, LOCAL, **o), id="local_only"
        ),
    ],
)
def test_clients_without_examples_count_for_nothing(problem, make):
    offsets = jnp.append(problem.data.offsets, jnp.full(3, problem.data.offsets[-1]))
    data = problem.data._replace(offsets=offsets)  # 7, 8 and 9 own nothing
    keys = jax.random.split(jax.random.key(9), 2)

    def rounds(algorithm, data, cohorts):
        state = algorithm.init(problem.variables, len(data.offsets) - 1)
        for key, cohort in zip(keys, cohorts, strict=True):
            cohort = jnp.array(cohort, jnp.int32)
            state, metrics = algorithm.round(state, data, cohort, key)
        return state, metrics

    plain = make(problem.learner, execution="packed")
    expected, expected_metrics = rounds(plain, problem.data, [[4, 0], [0, 2]])
    for options in TWO_EXECUTIONS:
        algorithm = make(problem.learner, **options)
        state, metrics = rounds(algorithm, data, [[4, 7, 0], [8, 0, 2]])
        for name in ("variables", "optimizer_state", "shared"):
            chex.assert_trees_all_close(
                getattr(state, name), getattr(expected, name), rtol=0, atol=1e-12
            )
        for client in (4, 0, 2):
            chex.assert_trees_all_close(
                algorithm.start(state, client),
                plain.start(expected, client),
                rtol=0,
                atol=1e-12,
            )
        if state.own:
            rows = expected.own.rows
            chex.assert_trees_all_close(
                {c: state.own.rows[c] for c in rows}, rows, rtol=0, atol=1e-12
            )
            assert not bool(state.own.rows[7][0])  # not known yet
        sent = ("bytes_down", "bytes_up")
        for name, value in metrics._asdict().items():
            if name not in sent:
                np.testing.assert_allclose(
                    value, getattr(expected_metrics, name), rtol=1e-9, err_msg=name
                )
        assert metrics.bytes_down == 1.5 * expected_metrics.bytes_down

        # A cohort of nobody: nothing is learnt, and nothing has failed.
        after, metrics = algorithm.round(
            state, data, jnp.array([7, 8, 9], jnp.int32), keys[0]
        )
        assert int(after.round) == 3
        for name in ("variables", "optimizer_state", "shared"):
            chex.assert_trees_all_close(
                getattr(after, name), getattr(state, name), rtol=0, atol=0
            )
        assert int(metrics.clients) == int(metrics.dropped) == int(metrics.steps) == 0
        assert not bool(metrics.failed)


@pytest.mark.parametrize("options", EXECUTIONS)
@pytest.mark.parametrize("cohort", [(5,), (3, 1, 6, 0, 2, 5, 4)], ids=["one", "all"])
def test_batches_larger_than_every_client(problem, options, cohort):
    """The whole client is one batch; no part of it is a smaller one to leave out."""
    local = LocalTraining(optax.sgd(0.3), batch_size=64, epochs=2, drop_last=True)
    algorithm = algorithms.fedavg(problem.learner, local, **options)
    cohort = jnp.array(cohort, jnp.int32)
    keys, state, metrics = run(problem, algorithm, 2, cohort)
    w = problem.weights()
    for key in keys:
        trained = [
            sgd(w, problem.batches(key, c, 64, epochs=2), 0.3) for c in cohort.tolist()
        ]
        w = combine(np.add, w, mean_update(problem, w, trained, cohort=cohort))
    assert_close(state.variables["params"], w, 1e-12)
    assert int(metrics[0].clients) == len(cohort)
    assert int(metrics[0].steps) == 2 * len(cohort)
    assert int(metrics[0].examples) == sum(SIZES[c] for c in cohort.tolist())


class Linear(flax.linen.Module):
    """Weights of zero, behind a batch norm or not."""

    batch_norm: bool = False
    classes: int = 3

    @flax.linen.compact
    def __call__(self, inputs, train=False, mask=None):
        x = inputs
        if self.batch_norm:
            x = BatchNorm(epsilon=1e-5, name="norm")(x, train, mask)
        return flax.linen.Dense(
            self.classes, kernel_init=flax.linen.initializers.zeros, name="classifier"
        )(x)


def make_rounds(inputs, labels, sizes, model, dtype="float32", **options):
    """(data, first state, round) of FedAvg; clients take one step on all they own."""
    data = FederatedData(
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32),
    )
    example = jax.ShapeDtypeStruct(inputs.shape[1:], jnp.float32)
    learner = make_learner(model, example, dtype=dtype)
    local = LocalTraining(optax.sgd(0.5), batch_size=8)
    algorithm = algorithms.fedavg(learner, local, **options)
    state = algorithm.init(learner.init(jax.random.key(0)), len(sizes))
    return data, state, algorithm


@pytest.mark.parametrize("options", EXECUTIONS)
def test_one_example_behind_a_batch_norm(options):
    inputs = np.array([[2.0, -1.0], [4.0, 3.0]])
    labels = np.array([0, 2])
    data, state, algorithm = make_rounds(
        inputs, labels, [1, 1], Linear(batch_norm=True), **options
    )
    kernel = np.array([[0.5, -1.0, 0.0], [0.0, 2.0, 1.0]], np.float32)
    state.variables["params"]["classifier"]["kernel"] = jnp.asarray(kernel)
    state, metrics = algorithm.round(
        state, data, jnp.array([0, 1], jnp.int32), jax.random.key(1)
    )
    # An example is its own mean, at distance 0: what is left are the two biases, 0 as
    # yet, so that all classes are as likely and only biases learn.
    towards = 1 / 3 - np.eye(3)[labels]
    params = state.variables["params"]
    np.testing.assert_allclose(
        params["classifier"]["bias"], -0.5 * towards.mean(0), atol=1e-6
    )
    np.testing.assert_allclose(
        params["norm"]["bias"], -0.5 * (towards @ kernel.T).mean(0), atol=1e-6
    )
    np.testing.assert_array_equal(params["classifier"]["kernel"], kernel)
    np.testing.assert_array_equal(params["norm"]["scale"], 1)
    running = state.variables["batch_stats"]["norm"]
    np.testing.assert_allclose(running["mean"], 0.1 * inputs.mean(0), rtol=1e-6)
    np.testing.assert_allclose(running["var"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(metrics.train_loss, np.log(3), rtol=1e-6)


@pytest.mark.parametrize("policy", ["average", "local"])
def test_infinite_batch_statistics_go_nowhere(policy):
    """Their client sends finite weights: what is divided by infinity is 0."""
    inputs = np.array([[1.0], [3.0], [1e30], [-1e30]])
    data, state, algorithm = make_rounds(
        inputs, np.array([0, 1, 0, 1]), [2, 2], Linear(True), batch_norm=policy
    )
    both, alone = jnp.array([0, 1], jnp.int32), jnp.array([0, 0], jnp.int32)
    after, metrics = algorithm.round(state, data, both, jax.random.key(1))
    assert int(metrics.dropped) == 1 and int(metrics.clients) == 1
    expected, _ = algorithm.round(state, data, alone, jax.random.key(1))
    chex.assert_trees_all_close(after.variables, expected.variables, rtol=0, atol=1e-6)
    for client in (0, 1):
        start = algorithm.start(after, client)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(start))


@pytest.mark.parametrize("options", EXECUTIONS)
def test_a_client_that_overflows_float16_is_dropped_and_counted(options):
    # Gradients of float16 are computed 2^10 times too large, see make_learner: those
    # of the second and third client are beyond 65504, their inputs are not.
    inputs = np.repeat([[1.0, -2.0], [6e4, 0.0], [0.0, 5e4]], 2, 0)
    labels = np.array([0, 0, 1, 1, 2, 2])
    data, state, algorithm = make_rounds(
        inputs, labels, [2, 2, 2], Linear(), "float16", **options
    )
    key = jax.random.key(1)
    after, metrics = algorithm.round(state, data, jnp.array([1, 0], jnp.int32), key)
    assert int(metrics.dropped) == 1 and int(metrics.clients) == 1
    assert not bool(metrics.failed)
    params = after.variables["params"]["classifier"]
    towards = 1 / 3 - np.eye(3)[0]
    np.testing.assert_allclose(
        params["kernel"], -0.5 * np.outer(inputs[0], towards), rtol=2e-3
    )
    np.testing.assert_allclose(params["bias"], -0.5 * towards, rtol=2e-3)
    np.testing.assert_allclose(metrics.train_loss, np.log(3), rtol=1e-3)
    # Nobody is left: the caller is told, and the weights stay.
    failed, metrics = algorithm.round(after, data, jnp.array([1, 2], jnp.int32), key)
    assert bool(metrics.failed) and int(metrics.dropped) == 2
    chex.assert_trees_all_close(failed.variables, after.variables, rtol=0, atol=0)


def test_a_single_class_teaches_nothing():
    """It is certain: loss and gradients are 0, and so is how much updates differ."""
    data, state, algorithm = make_rounds(
        np.ones((5, 2)), np.zeros(5), [2, 3], Linear(classes=1)
    )
    after, metrics = algorithm.round(
        state, data, jnp.array([0, 1], jnp.int32), jax.random.key(1)
    )
    chex.assert_trees_all_close(after.variables, state.variables, rtol=0, atol=0)
    assert int(metrics.clients) == 2 and float(metrics.train_loss) == 0
    assert float(metrics.update_norm_max) == float(metrics.drift) == 0
    assert np.isnan(metrics.gradient_diversity)  # 0 / 0


@pytest.fixture(scope="module")
def linear():
    """Rounds in float32 of two clients with two examples of two numbers each."""
    _, state, algorithm = make_rounds(np.ones((4, 2)), np.ones(4), [2, 2], Linear())

    def run(inputs, labels, rounds):
        data = FederatedData(
            jnp.asarray(inputs, jnp.float32),
            jnp.asarray(labels, jnp.int32),
            jnp.array([0, 2, 4], jnp.int32),
        )
        after, metrics = state, []
        for key in jax.random.split(jax.random.key(1), rounds):
            cohort = jnp.array([1, 0], jnp.int32)
            after, measured = algorithm.round(after, data, cohort, key)
            metrics.append(measured)
        return after.variables["params"]["classifier"], metrics

    return run


def test_float32_does_not_overflow_where_float16_does(linear):
    inputs, labels = np.repeat([[1.0, -2.0], [6e4, 0.0]], 2, 0), np.array([0, 0, 1, 1])
    params, (metrics,) = linear(inputs, labels, 1)
    assert int(metrics.dropped) == 0 and int(metrics.clients) == 2
    towards = 1 / 3 - np.eye(3)[[0, 1]]
    expected = -0.5 * (inputs[::2].T @ towards) / 2
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)


def test_examples_of_one_class_only_are_learnt(linear):
    params, metrics = linear(np.ones((4, 2)), np.ones(4), 3)
    # Kernel and bias of class c are all b_c, which makes logits 3 b_c and moves b_c by
    # -(p_c - [c = 1]) / 2, at every client alike.
    b, losses = np.zeros(3), []
    for _ in range(3):
        p = np.exp(3 * b) / np.exp(3 * b).sum()
        losses.append(-np.log(p[1]))
        b = b - 0.5 * (p - np.eye(3)[1])
    np.testing.assert_allclose([m.train_loss for m in metrics], losses, rtol=1e-5)
    np.testing.assert_allclose(params["bias"], b, rtol=1e-5)
    np.testing.assert_allclose(metrics[-1].cosine_mean, 1, rtol=1e-5)


def test_what_an_algorithm_does_not_take_is_refused_when_it_is_made(problem):
    with pytest.raises((TypeError, TypeCheckError), match="aggregation"):
        algorithms.fedavg(problem.learner, LOCAL, aggregation="median")
    with pytest.raises(TypeError, match="takes what a function of gptfl_jax.fl.aggreg"):
        # Types are checked in tests alone.
        composition._combination.__wrapped__(None, aggregation.median)
    with pytest.raises(ValueError, match="beside an aggregation, which weights by its"):
        algorithms.fedavg(
            problem.learner,
            LOCAL,
            weighting="uniform",
            aggregation=aggregation.mean("examples"),
        )
    algorithm = algorithms.fedavg(problem.learner, LOCAL)
    for count in (0, -3):
        with pytest.raises(ValueError, match=f"num_clients {count}: takes a whole"):
            algorithm.init(problem.variables, count)
