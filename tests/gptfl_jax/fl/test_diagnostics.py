import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.fl import algorithms, diagnostics
from gptfl_jax.fl.execution import Spread
from gptfl_jax.fl.local_training import LocalTraining

from .conftest import norm
from .rounds import COHORT, EXECUTIONS, run, sgd


def spread_of(updates: np.ndarray) -> tuple[Spread, jax.Array, jax.Array]:
    """The sums over the updates that are finite."""
    counts = np.isfinite(updates).all(1)
    finite = np.where(counts[:, None], updates, 0)
    norms = np.linalg.norm(finite, axis=1)
    directions = finite / np.where(norms > 0, norms, 1)[:, None]
    spread = Spread(jnp.asarray(finite.sum(0)), jnp.asarray(directions.sum(0)))
    return spread, jnp.asarray(norms), jnp.asarray(counts)


@pytest.mark.parametrize(
    ("updates", "diversity", "cosine"),
    [
        ([[3.0, 4.0]] * 4, 1 / 4, 1.0),  # the same four times
        ([[1.0, 0.0], [0.0, 1.0]], 1.0, np.sqrt(0.5)),  # orthogonal
        # |1|^2 + |(3, 4)|^2 = 26, |(4, 4)|^2 = 32; cosines 1/sqrt(2), 7/(5 sqrt(2)).
        ([[1.0, 0.0], [3.0, 4.0]], 26 / 32, (1 + 7 / 5) / np.sqrt(2) / 2),
        # A client that is not finite does not count.
        ([[1.0, 0.0], [np.nan, 1.0], [3.0, 4.0]], 26 / 32, 2.4 / np.sqrt(2) / 2),
    ],
)
def test_diversity_by_hand(updates, diversity, cosine):
    found = diagnostics.diversity(*spread_of(np.array(updates)))
    np.testing.assert_allclose(found.gradient_diversity, diversity, rtol=1e-6)
    np.testing.assert_allclose(
        found.inverse_gradient_diversity, 1 / diversity, rtol=1e-6
    )
    np.testing.assert_allclose(found.cosine_mean, cosine, rtol=1e-6)


def test_diversity_of_opposite_updates_is_undefined():
    found = diagnostics.diversity(*spread_of(np.array([[1.0, 0.0], [-1.0, 0.0]])))
    assert np.isnan(found.gradient_diversity)
    assert found.inverse_gradient_diversity == 0


def test_norm_summary_leaves_out_those_that_do_not_count():
    norms = jnp.array([3.0, 0.0, 1.0, 5.0])
    counts = jnp.array([True, False, True, True])
    summary = diagnostics.norm_summary(norms, counts)
    np.testing.assert_allclose(summary, [3, np.sqrt(8 / 3), 1, 5], rtol=1e-6)
    assert np.isnan(diagnostics.norm_summary(norms, counts & False)).all()


@pytest.mark.parametrize("options", EXECUTIONS)
def test_metrics_of_rounds(problem, options):
    local = LocalTraining(optax.sgd(0.3), batch_size=8)
    algorithm = algorithms.fedavg(problem.learner, local, **options)
    keys, state, metrics = run(problem, algorithm)
    start = w = problem.weights()
    for key, measured in zip(keys, metrics, strict=True):
        updates = []
        for client in COHORT.tolist():
            y = sgd(w, problem.batches(key, client, 8), 0.3)
            updates.append(np.concatenate([(y[n] - w[n]).ravel() for n in w]))
        updates = np.array(updates)
        norms = np.linalg.norm(updates, axis=1)
        total = updates.sum(0)
        p = problem.share(COHORT.tolist(), "examples")
        flat = p @ updates
        ends = np.cumsum([w[n].size for n in w])[:-1]
        parts = zip(w, np.split(flat, ends), strict=True)
        w = {n: w[n] + d.reshape(w[n].shape) for n, d in parts}
        cosines = updates @ total / norms / np.linalg.norm(total)
        expected = dict(
            gradient_diversity=(norms**2).sum() / (total @ total),
            inverse_gradient_diversity=(total @ total) / (norms**2).sum(),
            cosine_mean=cosines.mean(),
            update_norm_mean=norms.mean(),
            update_norm_std=norms.std(),
            update_norm_min=norms.min(),
            update_norm_max=norms.max(),
            mean_update_norm=np.linalg.norm(flat),
            drift=norm({n: w[n] - start[n] for n in w}),
        )
        for name, value in expected.items():
            np.testing.assert_allclose(
                getattr(measured, name), value, rtol=1e-10, err_msg=name
            )


def test_without_diagnostics_weights_are_the_same(problem):
    local = LocalTraining(optax.sgd(0.3), batch_size=8)
    _, expected, _ = run(problem, algorithms.fedavg(problem.learner, local), 1)
    plain = algorithms.fedavg(problem.learner, local, diagnostics=False)
    _, state, (metrics,) = run(problem, plain, 1)
    for x, y in zip(
        jax.tree.leaves(expected.variables),
        jax.tree.leaves(state.variables),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-14)
    assert np.isnan(metrics.gradient_diversity) and np.isnan(metrics.drift)
    assert np.isfinite(metrics.train_loss) and int(metrics.clients) == 5
