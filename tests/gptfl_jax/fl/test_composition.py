"""Rounds against loops over clients in numpy, written from the papers, in float64."""

import functools

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms, sampling
from gptfl_jax.fl.cohorts import example_order
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import make_learner

from .conftest import (
    CLASSES,
    FEATURES,
    HIDDEN,
    SIZES,
    assert_close,
    combine,
    gradient,
    norm,
)
from .rounds import COHORT, EXECUTIONS, LOCAL, mean_update, run, sgd


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


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (algorithms.fedavg, (optax.sgd, optax.sgd(0.3), optax.sgd(0.1))),
        (algorithms.scaffold, (optax.sgd, optax.sgd(0.3), optax.sgd(0.1))),
        # No factor on what Adafactor does with its rate gives what another does.
        (
            algorithms.fedavg,
            [
                functools.partial(
                    optax.adafactor, weight_decay_rate=0.1, min_dim_size_to_factor=2
                )
            ],
        ),
    ],
)
@pytest.mark.parametrize("options", EXECUTIONS)
def test_the_rate_as_an_argument(problem, make, rates, options):
    """As of an optimizer that has it, and nothing is compiled for another."""
    traced = []

    def loss(*arguments):
        traced.append(arguments)
        return problem.learner.loss(*arguments)

    learner = problem.learner._replace(loss=loss)
    optimizer, *with_rate = rates
    with_rate = with_rate or [optimizer(0.3), optimizer(0.1)]
    schedule = optax.cosine_decay_schedule(1.0, 3)
    local = LocalTraining(optimizer, batch_size=8, epochs=2, schedule=schedule)
    algorithm = make(learner, local, **options)
    for rate, given in zip((0.3, 0.1), with_rate, strict=True):
        _, state, _ = run(problem, algorithm.at(rate))
        if rate == 0.3:
            once = len(traced)
        assert len(traced) == once > 0
        fixed = make(problem.learner, local._replace(optimizer=given), **options)
        assert fixed.at(0.2) is fixed
        _, expected, _ = run(problem, fixed)
        assert_close(state.variables["params"], expected.variables["params"], 1e-12)
    with pytest.raises(ValueError, match="rate None: LocalTraining.optimizer takes"):
        run(problem, algorithm)
    with pytest.raises(ValueError, match=r"rate 0\.2: .* has its own; give a func"):
        LOCAL.at(0.2)


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


@pytest.mark.parametrize(
    ("options", "of_steps"),
    [
        pytest.param(*each.values, n, id=each.id)
        for each, n in zip(EXECUTIONS, (0, 3), strict=True)
    ],
)
def test_momentum_clipping_and_schedules(problem, options, of_steps):
    local = LocalTraining(
        optax.sgd(0.3, momentum=0.9),
        batch_size=8,
        epochs=2,
        clip_norm=0.5,
        schedule=optax.cosine_decay_schedule(1.0, 4),
        local_schedule=lambda done: (1 + jnp.cos(jnp.pi * done)) / 2,
        local_schedule_steps=of_steps,
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
                done = step / (of_steps or len(batches))
                rate *= (1 + np.cos(np.pi * done)) / 2
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


def train_with_nesterov(w, batches):
    velocity = combine(np.zeros_like, w)
    for batch in batches:
        g = gradient(w, batch)
        velocity = combine(lambda v, g: 0.9 * v + g, velocity, g)
        w = combine(lambda w, v, g: w - 0.1 * (0.9 * v + g), w, velocity, g)
    return w


def train_with_adamw(w, batches):
    m, v = combine(np.zeros_like, w), combine(np.zeros_like, w)
    for t, batch in enumerate(batches, 1):
        g = gradient(w, batch)
        m = combine(lambda m, g: 0.8 * m + 0.2 * g, m, g)
        v = combine(lambda v, g: 0.95 * v + 0.05 * g**2, v, g)
        w = combine(
            lambda w, m, v, t=t: (
                w
                - 0.1 * m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
                - 0.1 * 0.3 * w
            ),
            *(w, m, v),
        )
    return w


YOGI = optax.yogi(0.1)


def train_with_yogi(w, batches):
    state = YOGI.init(w)
    for batch in batches:
        updates, state = YOGI.update(gradient(w, batch), state, w)
        w = combine(lambda w, u: w + np.asarray(u), w, updates)
    return w


@pytest.mark.parametrize(
    ("optimizer", "train", "options"),
    [
        pytest.param(
            optax.sgd(0.1, momentum=0.9, nesterov=True),
            train_with_nesterov,
            {"execution": "packed"},
            id="nesterov",
        ),
        *(
            pytest.param(
                optax.adamw(0.1, b1=0.8, b2=0.95, weight_decay=0.3),
                train_with_adamw,
                options,
                id=f"adamw-{options['execution']}",
            )
            for options in ({"execution": "packed"}, {"execution": "vmap", "lanes": 2})
        ),
        pytest.param(YOGI, train_with_yogi, {"execution": "vmap"}, id="any of optax"),
    ],
)
def test_client_optimizers(problem, optimizer, train, options):
    """Their state starts anew in every round, and stops with the client's last step."""
    local = LocalTraining(optimizer, batch_size=8, epochs=2)
    algorithm = algorithms.fedavg(problem.learner, local, **options)
    keys, state, _ = run(problem, algorithm)
    w = problem.weights()
    for key in keys:
        trained = [
            train(w, problem.batches(key, c, 8, epochs=2)) for c in COHORT.tolist()
        ]
        w = combine(np.add, w, mean_update(problem, w, trained))
    assert_close(state.variables["params"], w, 1e-10)


class Network(flax.linen.Module):
    """That of `problem`."""

    @flax.linen.compact
    def __call__(self, inputs, train=False, mask=None):
        def param(name, *shape):
            return self.param(name, flax.linen.initializers.zeros, shape)

        hidden = jnp.tanh(inputs @ param("w0", FEATURES, HIDDEN) + param("b0", HIDDEN))
        return hidden @ param("w1", HIDDEN, CLASSES) + param("b1", CLASSES)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float64", 1e-12), ("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 5e-2)],
)
def test_dtypes(problem, dtype, tolerance):
    """The weights stay wide; an update is as precise as the computation."""
    wide = "float64" if dtype == "float64" else "float32"
    learner = make_learner(
        Network(), jax.ShapeDtypeStruct((FEATURES,), wide), dtype=dtype
    )
    local = LocalTraining(optax.sgd(0.3, momentum=0.5), batch_size=8)
    algorithm = algorithms.fedavg(learner, local)
    data = problem.data._replace(inputs=problem.data.inputs.astype(wide))
    start = jax.tree.map(lambda x: x.astype(wide), problem.variables)
    (key,), state, (metrics,) = run(
        problem._replace(data=data, variables=start), algorithm, 1
    )
    w, trained = problem.weights(), []
    for client in COHORT.tolist():
        y, velocity = w, combine(np.zeros_like, w)
        for batch in problem.batches(key, client, 8):
            g = gradient(y, batch)
            velocity = combine(lambda v, g: 0.5 * v + g, velocity, g)
            y = combine(lambda y, v: y - 0.3 * v, y, velocity)
        trained.append(y)
    update = mean_update(problem, w, trained)
    params = state.variables["params"]
    assert {x.dtype for x in params.values()} == {jnp.dtype(wide)}
    largest = max(np.abs(d).max() for d in update.values())
    assert_close(params, combine(np.add, w, update), tolerance * largest)
    assert int(metrics.dropped) == 0


def test_a_round_is_compiled_once_for_all_cohorts(problem, caplog):
    algorithm = algorithms.fedavg(problem.learner, LOCAL)
    state = algorithm.init(problem.variables, 7)
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        for number in range(4):
            cohort = sampling.cohort(jax.random.key(0), number, 7, 3)
            key = jax.random.key(number)
            state, _ = algorithm.round(state, problem.data, cohort, key)
    assert caplog.text.count("Compiling jit(round_of_all)") == 1


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
                    example_order(key, 2, epoch, 30, occurrence=1)
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


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda l: algorithms.fedavg(l, LOCAL, row_block=3), id="blocks"),
        *(
            pytest.param(
                lambda l, options=options: algorithms.scaffold(
                    l, LOCAL, control="start", **options
                ),
                id=f"start gradient {options['execution']}",
            )
            for options in ({"execution": "packed"}, {"execution": "vmap", "lanes": 2})
        ),
    ],
)
def test_padding_is_never_of_another_client(problem, make):
    """A masked row still reaches the gradient when it is NaN: 0 times NaN is NaN."""
    others = np.isin(np.repeat(np.arange(7), SIZES), (0, 2, 5))
    inputs = jnp.where(others[:, None], jnp.nan, problem.data.inputs)
    algorithm = make(problem.learner)
    cohort = jnp.array([1, 4, 6], jnp.int32)
    _, expected, _ = run(problem, algorithm, 1, cohort)
    with_nan = problem._replace(data=problem.data._replace(inputs=inputs))
    _, state, (metrics,) = run(with_nan, algorithm, 1, cohort)
    assert int(metrics.dropped) == 0
    for name, value in expected.variables["params"].items():
        np.testing.assert_array_equal(state.variables["params"][name], value)


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
    "make",
    [
        pytest.param(
            lambda l, **o: algorithms.scaffold(l, LOCAL, weighting="uniform", **o),
            id="scaffold path",
        ),
        pytest.param(
            lambda l, **o: algorithms.scaffold(
                l, LOCAL, control="start", weighting="uniform", **o
            ),
            id="scaffold start",
        ),
        pytest.param(lambda l, **o: algorithms.moon(l, LOCAL, **o), id="moon"),
    ],
)
def test_clients_that_fail_to_report_keep_their_state(problem, make):
    algorithm = make(problem.learner, dropout=0.5)
    state = algorithm.init(problem.variables, 7)
    failed_again = 0
    for key in jax.random.split(jax.random.key(4), 4):
        after, _ = algorithm.round(state, problem.data, COHORT, key)
        reports = sampling.reports(jax.random.fold_in(key, 2**32 - 1), COHORT, 0.5)
        for client, reported in zip(COHORT.tolist(), reports.tolist(), strict=True):
            row = after.own.rows[client]
            before = state.own.rows.get(client, state.own.empty)
            assert bool(row[0]) == (reported or bool(before[0]))
            if before[0] and not reported:
                failed_again += 1
                chex.assert_trees_all_equal(row, before)
        state = after
    assert failed_again > 0
    if jax.tree.leaves(state.shared):
        # SCAFFOLD's c is the mean of all c_i, also of those that are still 0.
        own = [row[1] for row in state.own.rows.values()]
        mean = combine(lambda *c: sum(c) / 7, *own)
        assert_close(state.shared, mean, 1e-12)


@pytest.mark.parametrize(
    "make",
    [algorithms.scaffold, lambda l, local: algorithms.feddyn(l, local, alpha=0.1)],
    ids=["scaffold", "feddyn"],
)
def test_a_client_twice_in_a_cohort_is_refused_where_states_go_together(problem, make):
    algorithm = make(problem.learner, LOCAL)
    state = algorithm.init(problem.variables, 7)
    cohort = jnp.array([2, 1, 2], jnp.int32)
    with pytest.raises(ValueError, match="twice in the cohort.*without replacement"):
        algorithm.round(state, problem.data, cohort, jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "pmap"}, "execution 'pmap': takes"),
        ({"weighting": "size"}, "weighting 'size': takes"),
        ({"dropout": 1.0}, "dropout 1.0: takes"),
        ({"lanes": -1}, "lanes -1: takes"),
        ({"row_block": -1}, "row_block -1 with"),
        ({"row_block": 4, "execution": "vmap"}, "row_block 4 with execution 'vmap'"),
    ],
)
def test_bad_options(problem, options, message):
    with pytest.raises(ValueError, match=message):
        algorithms.fedavg(problem.learner, LOCAL, **options)


def test_bad_local_training(problem):
    for local in (LOCAL._replace(batch_size=0), LOCAL._replace(epochs=0)):
        with pytest.raises(ValueError, match="takes 1 or more|must be positive"):
            algorithms.fedavg(problem.learner, local)
    with pytest.raises(ValueError, match="batch_norm 'none': takes"):
        algorithms.fedavg(problem.learner, LOCAL, batch_norm="none")
