"""SCAFFOLD against a loop in numpy, in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms
from gptfl_jax.fl.local_training import LocalTraining

from ..conftest import assert_close, combine, gradient
from ..rounds import (
    COHORT,
    EXECUTIONS,
    LOCAL,
    assert_same_rounds,
    mean_update,
    population_share,
    run,
    run_cohorts,
    sgd,
    weighted_sum,
)


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


def test_a_first_round_is_that_of_fedavg(problem):
    """All control variates are zero in it."""
    algorithm = algorithms.scaffold(problem.learner, LOCAL)
    assert_same_rounds(problem, algorithm, rounds=1)


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
    chex.assert_trees_all_equal(state, expected)


def test_optimizers_that_are_not_linear_are_refused(problem):
    local = LocalTraining(optax.adam(0.1), batch_size=8)
    with pytest.raises(ValueError, match="take control='start'"):
        algorithms.scaffold(problem.learner, local)
    algorithms.scaffold(problem.learner, local, control="start")


def test_an_unknown_control_is_refused(problem):
    with pytest.raises(ValueError, match="control '2': takes"):
        algorithms.scaffold(problem.learner, LOCAL, control="2")
