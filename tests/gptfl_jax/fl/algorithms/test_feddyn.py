"""FedDyn against a loop in numpy, in float64."""

import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close, combine
from ..rounds import EXECUTIONS, LOCAL, assert_same_rounds, run_cohorts, sgd


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


def test_feddyn_without_its_regulariser_is_fedavg(problem):
    assert_same_rounds(problem, algorithms.feddyn(problem.learner, LOCAL, alpha=0.0))


def test_a_negative_alpha_is_refused(problem):
    with pytest.raises(ValueError, match="alpha -1.0: takes"):
        algorithms.feddyn(problem.learner, LOCAL, alpha=-1.0)
