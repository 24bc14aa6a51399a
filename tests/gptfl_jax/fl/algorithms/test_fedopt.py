"""FedOpt against loops in numpy, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close, combine
from ..rounds import (
    COHORT,
    EXECUTIONS,
    LOCAL,
    assert_same_rounds,
    mean_update,
    run,
    sgd,
)


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


def test_fedopt_with_sgd_is_fedavg(problem):
    algorithm = algorithms.fedopt(problem.learner, LOCAL, optax.sgd(1.0))
    assert_same_rounds(problem, algorithm)


def test_an_optimizer_by_name_is_that_optimizer(problem):
    options = {"server_learning_rate": 0.1, "server_options": {"eps": 1e-3}}
    algorithm = algorithms.fedopt(problem.learner, LOCAL, "yogi", **options)
    _, state, _ = run(problem, algorithm, 1)
    made = algorithms.fedopt(problem.learner, LOCAL, optax.yogi(0.1, eps=1e-3))
    _, expected, _ = run(problem, made, 1)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    with pytest.raises(ValueError, match="'momentum': optax.adam takes no such"):
        algorithms.fedopt(
            problem.learner, LOCAL, "adam", server_options={"momentum": 0.9}
        )
