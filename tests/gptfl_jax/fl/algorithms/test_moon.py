"""MOON against a loop in numpy, in float64."""

import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close, combine, gradient
from ..rounds import EXECUTIONS, LOCAL, assert_same_rounds, mean_update, run_cohorts


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


def test_moon_without_its_term_is_fedavg(problem):
    assert_same_rounds(problem, algorithms.moon(problem.learner, LOCAL, mu=0.0))


def test_a_first_round_is_that_of_fedavg(problem):
    algorithm = algorithms.moon(problem.learner, LOCAL, mu=5.0)
    assert_same_rounds(problem, algorithm, rounds=1)


def test_a_temperature_of_0_is_refused(problem):
    with pytest.raises(ValueError, match="temperature 0.0: takes"):
        algorithms.moon(problem.learner, LOCAL, temperature=0.0)
