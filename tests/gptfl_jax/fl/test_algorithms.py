"""Rounds against loops over clients in numpy, written from the papers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms, clients, sampling
from gptfl_jax.fl.clients import LocalTraining

from .conftest import assert_close, combine, gradient, loss_and_gradient, norm

COHORT = jnp.array([4, 0, 2, 6, 1], jnp.int32)
EXECUTIONS = [
    pytest.param({"execution": "packed"}, id="packed"),
    pytest.param({"execution": "vmap", "lanes": 2}, id="vmap"),
]


def run(problem, algorithm, rounds=2, cohort=COHORT):
    """Rounds of an algorithm; the keys they used, the last state, all metrics."""
    state = algorithm.init(problem.variables, len(problem.data.offsets) - 1)
    keys, metrics = list(jax.random.split(jax.random.key(9), rounds)), []
    for key in keys:
        state, measured = algorithm.round(state, problem.data, cohort, key)
        metrics.append(measured)
    return keys, state, metrics


def sgd(w, batches, rate, correct=lambda g, w: g):
    for batch in batches:
        w = combine(lambda w, g: w - rate * g, w, correct(gradient(w, batch), w))
    return w


def mean_update(problem, start, trained, weighting="examples", cohort=COHORT):
    share = problem.share(np.asarray(cohort).tolist(), weighting)
    updates = [combine(np.subtract, w, start) for w in trained]
    return combine(
        lambda *ds: sum(p * d for p, d in zip(share, ds, strict=True)), *updates
    )


@pytest.mark.parametrize("options", EXECUTIONS)
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_fedavg(problem, options, weighting):
    local = LocalTraining(optax.sgd(0.3), batch_size=8, epochs=2)
    algorithm = algorithms.fedavg(
        problem.learner, local, weighting=weighting, **options
    )
    keys, state, metrics = run(problem, algorithm)
    w = problem.weights()
    for key, measured in zip(keys, metrics, strict=True):
        trained, loss, rows = [], 0.0, 0
        for client in COHORT.tolist():
            y = w
            for batch in problem.batches(key, client, 8, epochs=2):
                value, g = loss_and_gradient(y, *batch)
                y = combine(lambda y, g: y - 0.3 * g, y, g)
                loss, rows = loss + value * len(batch[1]), rows + len(batch[1])
            trained.append(y)
        w = combine(np.add, w, mean_update(problem, w, trained, weighting))
        np.testing.assert_allclose(measured.train_loss, loss / rows, rtol=1e-12)
    assert_close(state.variables["params"], w, 1e-12)
    assert int(state.round) == 2
    assert int(metrics[0].clients) == 5 and int(metrics[0].dropped) == 0
    sizes = [problem.size(c) for c in COHORT.tolist()]
    assert int(metrics[0].examples) == sum(sizes)
    assert int(metrics[0].steps) == sum(2 * -(-size // 8) for size in sizes)
    params = (5 * 4 + 4) + (4 * 3 + 3)
    assert metrics[0].bytes_down == metrics[0].bytes_up == 5 * params * 8


@pytest.mark.parametrize("options", EXECUTIONS)
def test_drop_last_leaves_the_smaller_batch_out(problem, options):
    local = LocalTraining(optax.sgd(0.3), batch_size=8, drop_last=True)
    algorithm = algorithms.fedavg(problem.learner, local, **options)
    (key,), state, metrics = run(problem, algorithm, 1)
    w = problem.weights()
    batches = [problem.batches(key, c, 8, drop_last=True) for c in COHORT.tolist()]
    trained = [sgd(w, b, 0.3) for b in batches]
    w = combine(np.add, w, mean_update(problem, w, trained))
    assert_close(state.variables["params"], w, 1e-12)
    # 20, 1, 30, 3 and 7 examples: those below a batch keep theirs.
    assert [len(b) for b in batches] == [2, 1, 3, 1, 1]
    assert int(metrics[0].steps) == 8


@pytest.mark.parametrize("options", EXECUTIONS)
def test_steps_in_place_of_epochs(problem, options):
    local = LocalTraining(optax.sgd(0.3), batch_size=8, steps=5)
    algorithm = algorithms.fedavg(problem.learner, local, **options)
    (key,), state, metrics = run(problem, algorithm, 1)
    w = problem.weights()
    trained = [
        sgd(w, problem.batches(key, c, 8, steps=5), 0.3) for c in COHORT.tolist()
    ]
    w = combine(np.add, w, mean_update(problem, w, trained))
    assert_close(state.variables["params"], w, 1e-12)
    assert int(metrics[0].steps) == 25


@pytest.mark.parametrize("options", EXECUTIONS)
def test_momentum_clipping_and_schedules(problem, options):
    local = LocalTraining(
        optax.sgd(0.3, momentum=0.9),
        batch_size=8,
        epochs=2,
        clip_norm=0.5,
        schedule=optax.cosine_decay_schedule(1.0, 4),
        local_schedule=lambda done: (1 + jnp.cos(jnp.pi * done)) / 2,
    )
    algorithm = algorithms.fedavg(problem.learner, local, **options)
    keys, state, _ = run(problem, algorithm, 2)
    w, clipped = problem.weights(), 0
    for number, key in enumerate(keys):
        trained = []
        for client in COHORT.tolist():
            y, velocity = w, combine(np.zeros_like, w)
            batches = problem.batches(key, client, 8, epochs=2)
            for step, batch in enumerate(batches):
                rate = 0.3 * (1 + np.cos(np.pi * number / 4)) / 2
                rate *= (1 + np.cos(np.pi * step / len(batches))) / 2
                g = gradient(y, batch)
                shrink = min(1, 0.5 / norm(g))
                clipped += shrink < 1
                g = combine(lambda g, shrink=shrink: shrink * g, g)
                velocity = combine(lambda v, g: 0.9 * v + g, velocity, g)
                y = combine(lambda y, v, rate=rate: y - rate * v, y, velocity)
            trained.append(y)
        w = combine(np.add, w, mean_update(problem, w, trained))
    assert clipped > 0
    assert_close(state.variables["params"], w, 1e-12)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_fedprox(problem, options):
    local = LocalTraining(optax.sgd(0.3), batch_size=8, epochs=2)
    algorithm = algorithms.fedprox(problem.learner, local, mu=0.7, **options)
    keys, state, _ = run(problem, algorithm)
    w = problem.weights()
    for key in keys:
        x = w

        def pull(g, y, x=x):
            return combine(lambda g, y, x: g + 0.7 * (y - x), g, y, x)

        trained = [
            sgd(w, problem.batches(key, c, 8, epochs=2), 0.3, pull)
            for c in COHORT.tolist()
        ]
        w = combine(np.add, w, mean_update(problem, w, trained))
    assert_close(state.variables["params"], w, 1e-12)


def test_fedopt_adam(problem):
    local = LocalTraining(optax.sgd(0.3), batch_size=8)
    algorithm = algorithms.fedopt(
        problem.learner, local, optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-3)
    )
    keys, state, _ = run(problem, algorithm, 3)
    w = problem.weights()
    m, v = combine(np.zeros_like, w), combine(np.zeros_like, w)
    for t, key in enumerate(keys, 1):
        trained = [sgd(w, problem.batches(key, c, 8), 0.3) for c in COHORT.tolist()]
        delta = mean_update(problem, w, trained)
        m = combine(lambda m, d: 0.9 * m + 0.1 * d, m, delta)
        v = combine(lambda v, d: 0.99 * v + 0.01 * d**2, v, delta)
        w = combine(
            lambda w, m, v, t=t: (
                w + 0.1 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-3)
            ),
            w,
            m,
            v,
        )
    assert_close(state.variables["params"], w, 1e-12)


LOCAL = LocalTraining(optax.sgd(0.3), batch_size=8, epochs=2)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda l: algorithms.fedprox(l, LOCAL, mu=0.0), id="fedprox"),
        pytest.param(
            lambda l: algorithms.fedopt(l, LOCAL, optax.sgd(1.0)), id="fedopt"
        ),
    ],
)
def test_identities(problem, make):
    _, expected, _ = run(problem, algorithms.fedavg(problem.learner, LOCAL), 3)
    _, state, _ = run(problem, make(problem.learner), 3)
    expected = {k: np.asarray(v) for k, v in expected.variables["params"].items()}
    assert_close(state.variables["params"], expected, 1e-12)


def test_one_client_with_its_full_batch_is_central_gradient_descent(problem):
    local = LocalTraining(optax.sgd(0.3), batch_size=30)
    algorithm = algorithms.fedavg(problem.learner, local)
    _, state, _ = run(problem, algorithm, 5, cohort=jnp.array([2], jnp.int32))
    rows = slice(*problem.data.offsets[2:4].tolist())
    batch = (
        np.asarray(problem.data.inputs[rows]),
        np.asarray(problem.data.labels[rows]),
    )
    w = sgd(problem.weights(), [batch] * 5, 0.3)
    assert_close(state.variables["params"], w, 1e-12)


def test_a_round_is_compiled_once_for_all_cohorts(problem):
    algorithm = algorithms.fedavg(problem.learner, LOCAL)
    state = algorithm.init(problem.variables, 7)
    for number in range(4):
        cohort = sampling.cohort(jax.random.key(0), number, 7, 3)
        state, _ = algorithm.round(state, problem.data, cohort, jax.random.key(number))
    assert algorithm.round._cache_size() == 1


def test_a_client_twice_in_a_cohort_trains_in_two_orders(problem):
    algorithm = algorithms.fedavg(problem.learner, LOCAL)
    cohort = jnp.array([2, 1, 2], jnp.int32)
    (key,), state, _ = run(problem, algorithm, 1, cohort)
    w, trained = problem.weights(), []
    start = int(problem.data.offsets[2])
    for client, occurrence in ((2, 0), (1, 0), (2, 1)):
        if occurrence:
            batches = []
            for epoch in range(2):
                order = start + np.asarray(
                    clients.example_order(key, 2, epoch, 30, occurrence=1)
                )
                for rows in np.split(order, range(8, 30, 8)):
                    batches.append(
                        (
                            np.asarray(problem.data.inputs)[rows],
                            np.asarray(problem.data.labels)[rows],
                        )
                    )
        else:
            batches = problem.batches(key, client, 8, epochs=2)
        trained.append(sgd(w, batches, 0.3))
    w = combine(np.add, w, mean_update(problem, w, trained, cohort=cohort))
    assert_close(state.variables["params"], w, 1e-12)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_a_client_with_nan_is_dropped_and_counted(problem, options):
    broken = int(problem.data.offsets[2])
    data = problem.data._replace(inputs=problem.data.inputs.at[broken].set(jnp.nan))
    with_nan = problem._replace(data=data)
    algorithm = algorithms.fedavg(problem.learner, LOCAL, **options)
    (key,), state, (metrics,) = run(with_nan, algorithm, 1)
    rest = jnp.array([4, 0, 6, 1], jnp.int32)
    w = problem.weights()
    trained = [sgd(w, problem.batches(key, c, 8, epochs=2), 0.3) for c in rest.tolist()]
    w = combine(np.add, w, mean_update(problem, w, trained, cohort=rest))
    assert_close(state.variables["params"], w, 1e-12)
    assert int(metrics.dropped) == 1 and int(metrics.clients) == 4
    assert int(metrics.examples) == 20 + 1 + 3 + 7
    assert not bool(metrics.failed)
    assert all(np.isfinite(np.asarray(v)).all() for v in metrics)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_a_cohort_of_nothing_but_nan_leaves_the_state(problem, options):
    data = problem.data._replace(inputs=problem.data.inputs * jnp.inf)
    broken = problem._replace(data=data)
    algorithm = algorithms.fedopt(problem.learner, LOCAL, optax.adam(0.1), **options)
    before = algorithm.init(problem.variables, 7)
    _, state, (metrics,) = run(broken, algorithm, 1)
    assert bool(metrics.failed) and int(metrics.dropped) == 5
    assert int(metrics.clients) == 0
    assert_close(state.variables["params"], problem.weights(), 0)
    for old, new in zip(
        jax.tree.leaves(before.optimizer_state),
        jax.tree.leaves(state.optimizer_state),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


def test_clients_without_examples_count_for_nothing(problem):
    offsets = jnp.concatenate([problem.data.offsets, problem.data.offsets[-1:]])
    data = problem.data._replace(offsets=offsets)
    algorithm = algorithms.fedavg(problem.learner, LOCAL, weighting="uniform")
    with_empty = problem._replace(data=data)
    cohort = jnp.append(COHORT, jnp.int32(7))
    _, state, (metrics,) = run(with_empty, algorithm, 1, cohort)
    _, expected, _ = run(problem, algorithm, 1)
    expected = {k: np.asarray(v) for k, v in expected.variables["params"].items()}
    assert_close(state.variables["params"], expected, 1e-12)
    assert int(metrics.clients) == 5


def test_clients_that_fail_to_report(problem):
    algorithm = algorithms.fedavg(problem.learner, LOCAL, dropout=0.6)
    (key,), state, (metrics,) = run(problem, algorithm, 1)
    dropout_key = jax.random.fold_in(key, 2**32 - 1)
    reports = sampling.reports(dropout_key, COHORT, 0.6)
    assert 0 < int(reports.sum()) < 5
    rest = COHORT[reports]
    w = problem.weights()
    trained = [sgd(w, problem.batches(key, c, 8, epochs=2), 0.3) for c in rest.tolist()]
    w = combine(np.add, w, mean_update(problem, w, trained, cohort=rest))
    assert_close(state.variables["params"], w, 1e-12)
    assert int(metrics.clients) == len(rest) and int(metrics.dropped) == 0
    assert metrics.bytes_up / metrics.bytes_down == len(rest) / 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "pmap"}, "execution 'pmap': takes"),
        ({"weighting": "size"}, "weighting 'size': takes"),
        ({"dropout": 1.0}, "dropout 1.0: takes"),
        ({"lanes": -1}, "lanes -1: takes"),
    ],
)
def test_bad_options(problem, options, message):
    with pytest.raises(ValueError, match=message):
        algorithms.fedavg(problem.learner, LOCAL, **options)


def test_bad_local_training(problem):
    for local in (LOCAL._replace(batch_size=0), LOCAL._replace(epochs=0)):
        with pytest.raises(ValueError, match="takes 1 or more|must be positive"):
            algorithms.fedavg(problem.learner, local)
    with pytest.raises(ValueError, match="mu -1.0: takes"):
        algorithms.fedprox(problem.learner, LOCAL, mu=-1.0)
