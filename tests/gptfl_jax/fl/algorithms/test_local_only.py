"""Clients that train alone, against a loop in numpy, in float64."""

import optax

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close
from ..rounds import run_cohorts, sgd


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
