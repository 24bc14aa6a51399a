"""Rounds of an algorithm, and of loops over clients in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from .conftest import assert_close, combine, gradient, make_problem

COHORT = jnp.array([4, 0, 2, 6, 1], jnp.int32)
EXECUTIONS = [
    pytest.param({"execution": "packed"}, id="packed"),
    pytest.param({"execution": "vmap", "lanes": 2}, id="vmap"),
]
LOCAL = LocalTraining(optax.sgd(0.3), batch_size=8, epochs=2)
EQUAL_STEPS = LocalTraining(optax.sgd(0.3), batch_size=8, steps=4)


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


def assert_same_rounds(problem, algorithm, local=LOCAL, rounds=2):
    """That an algorithm moves the weights as FedAvg does."""
    _, state, _ = run(problem, algorithm, rounds)
    assert_close(state.variables["params"], _of_fedavg(local, rounds), 1e-12)


@functools.cache
def _of_fedavg(local, rounds):
    """Where FedAvg is after so many rounds: every problem is the same."""
    problem = make_problem()
    _, state, _ = run(problem, algorithms.fedavg(problem.learner, local), rounds)
    return {k: np.asarray(v) for k, v in state.variables["params"].items()}
