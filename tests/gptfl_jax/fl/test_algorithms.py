"""Rounds against loops over clients in numpy, written from the papers, in float64."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms, clients, sampling
from gptfl_jax.fl.clients import LocalTraining
from gptfl_jax.training import make_learner

from .conftest import (
    CLASSES,
    FEATURES,
    HIDDEN,
    SIZES,
    assert_close,
    combine,
    gradient,
    loss_and_gradient,
    norm,
)

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
    return weighted_sum(share, [combine(np.subtract, w, start) for w in trained])


def weighted_sum(weights, trees):
    def add(*leaves):
        return sum(w * leaf for w, leaf in zip(weights, leaves, strict=True))

    return combine(add, *trees)


BLOCKS = pytest.param({"execution": "packed", "row_block": 3}, id="blocks")


@pytest.mark.parametrize("options", [*EXECUTIONS, BLOCKS])
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


def cohorts(rounds):
    """Different clients a round, some of them again."""
    return [COHORT, jnp.array([2, 3, 5, 4, 6], jnp.int32), COHORT[::-1]][:rounds]


def run_cohorts(problem, algorithm, rounds=3):
    state = algorithm.init(problem.variables, 7)
    keys = jax.random.split(jax.random.key(9), rounds)
    for key, cohort in zip(keys, cohorts(rounds), strict=True):
        state, metrics = algorithm.round(state, problem.data, cohort, key)
    return list(zip(keys, [c.tolist() for c in cohorts(rounds)], strict=True)), state


def population_share(problem, cohort, weighting):
    if weighting == "uniform":
        return len(cohort) / 7
    return sum(problem.size(c) for c in cohort) / len(problem.data.labels)


@pytest.mark.parametrize("options", EXECUTIONS)
@pytest.mark.parametrize(
    ("control", "weighting"), [("path", "uniform"), ("start", "examples")]
)
def test_scaffold(problem, options, control, weighting):
    local = LocalTraining(optax.sgd(0.1), batch_size=8, epochs=2)
    algorithm = algorithms.scaffold(
        problem.learner,
        local,
        control=control,
        server_learning_rate=0.8,
        weighting=weighting,
        **options,
    )
    rounds, state = run_cohorts(problem, algorithm)
    x = problem.weights()
    c = combine(np.zeros_like, x)
    own = {client: c for client in range(7)}
    for key, cohort in rounds:
        trained, changes = [], []
        for client in cohort:
            batches = problem.batches(key, client, 8, epochs=2)

            def correct(g, y, client=client, c=c):
                return combine(lambda g, ci, c: g - ci + c, g, own[client], c)

            y = sgd(x, batches, 0.1, correct)
            if control == "start":
                rows = slice(*problem.data.offsets[client : client + 2].tolist())
                new = gradient(
                    x, (problem.data.inputs[rows], problem.data.labels[rows])
                )
            else:
                k_eta = len(batches) * 0.1
                new = combine(
                    lambda ci, c, x, y, k_eta=k_eta: ci - c + (x - y) / k_eta,
                    *(own[client], c, x, y),
                )
            trained.append(y)
            changes.append(combine(np.subtract, new, own[client]))
            own[client] = new
        p = problem.share(cohort, weighting)
        delta = mean_update(problem, x, trained, weighting, cohort)
        x = combine(lambda x, d: x + 0.8 * d, x, delta)
        change = weighted_sum(population_share(problem, cohort, weighting) * p, changes)
        c = combine(np.add, c, change)
    assert_close(state.variables["params"], x, 1e-12)
    assert_close(state.shared, c, 1e-12)
    assert sorted(state.own.rows) == [0, 1, 2, 3, 4, 5, 6]
    assert_close(state.own.rows[5][1], own[5], 1e-12)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_fednova_with_momentum_and_proximal_term(problem, options):
    rho, mu, eta = 0.5, 0.4, 0.2
    local = LocalTraining(optax.sgd(eta, momentum=rho), batch_size=8, epochs=2)
    algorithm = algorithms.fednova(problem.learner, local, mu=mu, **options)
    keys, state, _ = run(problem, algorithm)
    x = problem.weights()
    for key in keys:
        directions, masses = [], []
        for client in COHORT.tolist():
            batches = problem.batches(key, client, 8, epochs=2)
            y, v = x, combine(np.zeros_like, x)
            # a_i: how often each gradient is counted in y - x, from the recursion.
            a, a_velocity = np.zeros(len(batches)), np.zeros(len(batches))
            for step, batch in enumerate(batches):
                g = combine(lambda g, y, x: g + mu * (y - x), gradient(y, batch), y, x)
                v = combine(lambda v, g: rho * v + g, v, g)
                y = combine(lambda y, v: y - eta * v, y, v)
                a_gradient = -eta * mu * a
                a_gradient[step] += 1
                a_velocity = rho * a_velocity + a_gradient
                a = a + a_velocity
            mass = a.sum()
            directions.append(combine(lambda y, x, m=mass: (y - x) / m, y, x))
            masses.append(mass)
        p = problem.share(COHORT.tolist(), "examples")
        effective = p @ np.array(masses)
        x = combine(np.add, x, weighted_sum(effective * p, directions))
    assert_close(state.variables["params"], x, 1e-12)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_feddyn(problem, options):
    alpha, eta = 0.3, 0.1
    local = LocalTraining(optax.sgd(eta), batch_size=8, epochs=2)
    algorithm = algorithms.feddyn(
        problem.learner, local, alpha=alpha, weighting="uniform", **options
    )
    rounds, state = run_cohorts(problem, algorithm)
    x = problem.weights()
    h = combine(np.zeros_like, x)
    own = {client: h for client in range(7)}
    for key, cohort in rounds:
        trained = []
        for client in cohort:

            def correct(g, y, hi=own[client], x=x):
                return combine(
                    lambda g, hi, y, x: g - hi + alpha * (y - x), g, hi, y, x
                )

            y = sgd(x, problem.batches(key, client, 8, epochs=2), eta, correct)
            own[client] = combine(
                lambda h, y, x: h - alpha * (y - x), own[client], y, x
            )
            trained.append(y)
        h = combine(
            lambda h, x, *ys: h - alpha / 7 * sum(y - x for y in ys), h, x, *trained
        )
        x = combine(lambda h, *ys: sum(ys) / len(ys) - h / alpha, h, *trained)
    assert_close(state.variables["params"], x, 1e-12)
    assert_close(state.own.rows[2][1], own[2], 1e-12)


@pytest.mark.parametrize("options", EXECUTIONS)
def test_moon(problem, options):
    mu, temperature, eta = 0.7, 0.5, 0.1
    local = LocalTraining(optax.sgd(eta), batch_size=8)
    algorithm = algorithms.moon(
        problem.learner, local, mu=mu, temperature=temperature, **options
    )
    rounds, state = run_cohorts(problem, algorithm)

    def logits(w, inputs):
        return np.tanh(inputs @ w["w0"] + w["b0"]) @ w["w1"] + w["b1"]

    def contrast(w, inputs, server, previous):
        z = logits(w, inputs)
        a, b = (
            np.exp(
                (z * other).sum(1)
                / np.sqrt((z**2).sum(1) * (other**2).sum(1) + 1e-12)
                / temperature
            )
            for other in (logits(server, inputs), logits(previous, inputs))
        )
        return -np.log(a / (a + b)).mean()

    def contrast_gradient(w, *arguments):
        """Central differences, good to about 1e-9."""
        result = combine(np.zeros_like, w)
        for name, value in w.items():
            for index in np.ndindex(value.shape):
                ends = []
                for step in (1e-5, -1e-5):
                    moved = {**w, name: value.copy()}
                    moved[name][index] += step
                    ends.append(contrast(moved, *arguments))
                result[name][index] = (ends[0] - ends[1]) / 2e-5
        return result

    x, own = problem.weights(), {}
    for key, cohort in rounds:
        trained = []
        for client in cohort:
            y, previous = x, own.get(client, x)
            for batch in problem.batches(key, client, 8):
                term = contrast_gradient(y, batch[0], x, previous)
                y = combine(
                    lambda y, g, t: y - eta * (g + mu * t), y, gradient(y, batch), term
                )
            own[client] = y
            trained.append(y)
        x = combine(np.add, x, mean_update(problem, x, trained, cohort=cohort))
    assert_close(state.variables["params"], x, 1e-8)


@pytest.mark.parametrize("nesterov", [False, True])
def test_fedavgm(problem, nesterov):
    local = LocalTraining(optax.sgd(0.3), batch_size=8)
    algorithm = algorithms.fedavgm(
        problem.learner, local, beta=0.9, server_learning_rate=0.5, nesterov=nesterov
    )
    keys, state, _ = run(problem, algorithm, 3)
    w = problem.weights()
    v = combine(np.zeros_like, w)
    for key in keys:
        trained = [sgd(w, problem.batches(key, c, 8), 0.3) for c in COHORT.tolist()]
        update = mean_update(problem, w, trained)
        v = combine(lambda v, d: 0.9 * v + d, v, update)
        ahead = combine(lambda v, d: 0.9 * v + d, v, update) if nesterov else v
        w = combine(lambda w, v: w + 0.5 * v, w, ahead)
    assert_close(state.variables["params"], w, 1e-12)


def test_local_only(problem):
    local = LocalTraining(optax.sgd(0.3), batch_size=8)
    algorithm = algorithms.local_only(problem.learner, local)
    rounds, state = run_cohorts(problem, algorithm)
    own = {}
    for key, cohort in rounds:
        for client in cohort:
            start = own.get(client, problem.weights())
            own[client] = sgd(start, problem.batches(key, client, 8), 0.3)
    assert_close(state.variables["params"], problem.weights(), 0)
    for client in range(7):
        assert_close(algorithm.start(state, client)["params"], own[client], 1e-12)


LOCAL = LocalTraining(optax.sgd(0.3), batch_size=8, epochs=2)
EQUAL_STEPS = LocalTraining(optax.sgd(0.3), batch_size=8, steps=4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda l: algorithms.fedprox(l, LOCAL, mu=0.0), id="fedprox"),
        pytest.param(
            lambda l: algorithms.fedopt(l, LOCAL, optax.sgd(1.0)), id="fedopt"
        ),
        pytest.param(lambda l: algorithms.fedavgm(l, LOCAL, beta=0.0), id="fedavgm"),
        pytest.param(lambda l: algorithms.feddyn(l, LOCAL, alpha=0.0), id="feddyn"),
        pytest.param(lambda l: algorithms.moon(l, LOCAL, mu=0.0), id="moon"),
    ],
)
def test_identities(problem, make):
    _, expected, _ = run(problem, algorithms.fedavg(problem.learner, LOCAL), 2)
    _, state, _ = run(problem, make(problem.learner), 2)
    expected = {k: np.asarray(v) for k, v in expected.variables["params"].items()}
    assert_close(state.variables["params"], expected, 1e-12)


def test_fednova_with_equal_steps_is_fedavg(problem):
    _, expected, _ = run(problem, algorithms.fedavg(problem.learner, EQUAL_STEPS))
    _, state, _ = run(problem, algorithms.fednova(problem.learner, EQUAL_STEPS))
    expected = {k: np.asarray(v) for k, v in expected.variables["params"].items()}
    assert_close(state.variables["params"], expected, 1e-12)


def test_scaffold_starts_as_fedavg(problem):
    """All control variates are zero in the first round."""
    _, expected, _ = run(problem, algorithms.fedavg(problem.learner, LOCAL), 1)
    _, state, _ = run(problem, algorithms.scaffold(problem.learner, LOCAL), 1)
    expected = {k: np.asarray(v) for k, v in expected.variables["params"].items()}
    assert_close(state.variables["params"], expected, 1e-12)


def test_moon_in_a_first_round_is_fedavg(problem):
    _, expected, _ = run(problem, algorithms.fedavg(problem.learner, LOCAL), 1)
    _, state, _ = run(problem, algorithms.moon(problem.learner, LOCAL, mu=5.0), 1)
    expected = {k: np.asarray(v) for k, v in expected.variables["params"].items()}
    assert_close(state.variables["params"], expected, 1e-12)


def test_client_state_survives_packing(problem):
    algorithm = algorithms.scaffold(problem.learner, LOCAL)
    _, state, _ = run(problem, algorithm, 1)
    packed = state.own.pack()
    np.testing.assert_array_equal(packed.ids, sorted(COHORT.tolist()))
    template = algorithm.init(problem.variables, 7).own
    shapes = jax.tree.map(np.shape, template.packed_like(5))
    assert shapes == jax.tree.map(np.shape, packed)
    restored = template.unpack(packed)
    key = jax.random.key(3)
    after, _ = algorithm.round(state, problem.data, COHORT, key)
    again, _ = algorithm.round(state._replace(own=restored), problem.data, COHORT, key)
    assert_close(again.variables["params"], after.variables["params"], 0)


def test_state_of_a_client_with_nan_stays(problem):
    algorithm = algorithms.scaffold(problem.learner, LOCAL)
    _, state, _ = run(problem, algorithm, 1)
    broken = int(problem.data.offsets[2])
    data = problem.data._replace(inputs=problem.data.inputs.at[broken].set(jnp.nan))
    after, metrics = algorithm.round(state, data, COHORT, jax.random.key(3))
    assert int(metrics.dropped) == 1
    assert_close(after.own.rows[2][1], state.own.rows[2][1], 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.shared))


def test_the_gradient_at_the_start_is_of_no_other_clients_rows(problem):
    algorithm = algorithms.scaffold(problem.learner, LOCAL, control="start")
    cohort = jnp.array([0, 2], jnp.int32)
    after_them = problem.data.offsets[jnp.array([1, 3])]
    data = problem.data._replace(inputs=problem.data.inputs.at[after_them].set(jnp.nan))
    start, key = algorithm.init(problem.variables, 7), jax.random.key(3)
    expected, _ = algorithm.round(start, problem.data, cohort, key)
    state, metrics = algorithm.round(start, data, cohort, key)
    assert int(metrics.dropped) == 0
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_optimizers_that_are_not_linear_are_refused(problem):
    local = LocalTraining(optax.adam(0.1), batch_size=8)
    with pytest.raises(ValueError, match="take control='start'"):
        algorithms.scaffold(problem.learner, local)
    with pytest.raises(ValueError, match="needs SGD at the clients"):
        algorithms.fednova(problem.learner, local)
    algorithms.scaffold(problem.learner, local, control="start")


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
                jax.tree.map(np.testing.assert_array_equal, row, before)
        state = after
    assert failed_again > 0
    if jax.tree.leaves(state.shared):
        # SCAFFOLD's c is the mean of all c_i, also of those that are still 0.
        own = [row[1] for row in state.own.rows.values()]
        mean = combine(lambda *c: sum(c) / 7, *own)
        assert_close(state.shared, mean, 1e-12)


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
    with pytest.raises(ValueError, match="mu -1.0: takes"):
        algorithms.fedprox(problem.learner, LOCAL, mu=-1.0)
    with pytest.raises(ValueError, match="mu -1.0: takes"):
        algorithms.fednova(problem.learner, LOCAL, mu=-1.0)
    with pytest.raises(ValueError, match="alpha -1.0: takes"):
        algorithms.feddyn(problem.learner, LOCAL, alpha=-1.0)
    with pytest.raises(ValueError, match="beta 1.0: takes"):
        algorithms.fedavgm(problem.learner, LOCAL, beta=1.0)
    with pytest.raises(ValueError, match="temperature 0.0: takes"):
        algorithms.moon(problem.learner, LOCAL, temperature=0.0)
    with pytest.raises(ValueError, match="control '2': takes"):
        algorithms.scaffold(problem.learner, LOCAL, control="2")
    with pytest.raises(ValueError, match="batch_norm 'none': takes"):
        algorithms.fedavg(problem.learner, LOCAL, batch_norm="none")
