"""FedNova against a loop in numpy, in float64."""

import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close, combine, gradient
from ..rounds import (
    COHORT,
    EQUAL_STEPS,
    EXECUTIONS,
    LOCAL,
    assert_same_rounds,
    run,
    weighted_sum,
)


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


def test_fednova_with_equal_steps_is_fedavg(problem):
    algorithm = algorithms.fednova(problem.learner, EQUAL_STEPS)
    assert_same_rounds(problem, algorithm, EQUAL_STEPS)


def test_optimizers_that_are_not_linear_are_refused(problem):
    local = LocalTraining(optax.adam(0.1), batch_size=8)
    with pytest.raises(ValueError, match="needs SGD at the clients"):
        algorithms.fednova(problem.learner, local)


def test_a_negative_mu_is_refused(problem):
    with pytest.raises(ValueError, match="mu -1.0: takes"):
        algorithms.fednova(problem.learner, LOCAL, mu=-1.0)
