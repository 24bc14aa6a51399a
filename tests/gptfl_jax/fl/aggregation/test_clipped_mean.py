"""Clipping and noise."""

import jax
import numpy as np
import pytest

from gptfl_jax.fl import aggregation

from .updates import combine


@pytest.mark.parametrize("lanes", [1, 2])
def test_clipped_mean(lanes):
    updates = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, -8.0], [0.0, 0.0]])
    weights = [0.5, 0.3, 0.2, 0.0]
    mean = combine(aggregation.clipped_mean(1.0), updates, weights, lanes)
    # (0.6, 0.8) + (0.3, 0.4) + (0, -1), over the three that reported.
    np.testing.assert_allclose(mean, [0.3, 0.2 / 3], rtol=1e-6)


def test_noise_of_the_clipped_mean():
    size, clients = 20_000, 4
    noisy = combine(
        aggregation.clipped_mean(0.5, noise_multiplier=2.0),
        np.zeros((clients, size)),
        [0.25] * clients,
        key=jax.random.key(1),
    )
    np.testing.assert_allclose(noisy.std(), 2.0 * 0.5 / clients, rtol=0.03)
    np.testing.assert_allclose(noisy.mean(), 0, atol=0.01)
