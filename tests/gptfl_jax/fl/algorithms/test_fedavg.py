"""FedAvg, FedAvgM and FedProx against loops in numpy, in float64."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close, combine, loss_and_gradient
from ..rounds import (
    COHORT,
    EXECUTIONS,
    LOCAL,
    assert_same_rounds,
    mean_update,
    run,
    sgd,
)

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


def test_fedavgm_without_momentum_is_fedavg(problem):
    assert_same_rounds(problem, algorithms.fedavgm(problem.learner, LOCAL, beta=0.0))


def test_fedavgm_refuses_a_momentum_of_1(problem):
    with pytest.raises(ValueError, match="beta 1.0: takes"):
        algorithms.fedavgm(problem.learner, LOCAL, beta=1.0)


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


def test_fedprox_without_its_term_is_fedavg(problem):
    assert_same_rounds(problem, algorithms.fedprox(problem.learner, LOCAL, mu=0.0))


def test_fedprox_refuses_a_negative_mu(problem):
    with pytest.raises(ValueError, match="mu -1.0: takes"):
        algorithms.fedprox(problem.learner, LOCAL, mu=-1.0)
