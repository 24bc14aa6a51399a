"""Drawn shares, and clients that are filled up."""

import numpy as np
import pytest

from gptfl_jax.data.partition import _shares


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
def test_dirichlet_draw_has_the_moments_of_the_distribution(alpha):
    generator = np.random.default_rng(0)
    draws = np.stack([_shares.draw_shares(generator, alpha, 5) for _ in range(20_000)])
    np.testing.assert_allclose(draws.sum(1), 1)
    np.testing.assert_allclose(draws.mean(0), 0.2, atol=0.01)
    # E[p^2] = (alpha + 1) / (K (K alpha + 1)) for K shares.
    second = (alpha + 1) / (5 * (5 * alpha + 1))
    np.testing.assert_allclose((draws**2).mean(0), second, atol=0.01)


def test_filling_up_takes_no_more_than_needed_from_the_largest():
    # Sizes 10, 4, 0, 1 with at least 2 each need 3 more: 10 falls to 7.
    owner = np.array([0] * 10 + [1] * 4 + [3])
    filled = _shares.fill_up(owner, 4, 2, np.random.default_rng(0))
    assert np.bincount(filled).tolist() == [7, 4, 2, 2]
    np.testing.assert_array_equal(filled[10:], owner[10:])
    # 10, 9 and a client missing 5: both fall to 7, 3 + 2.
    owner = np.array([0] * 10 + [1] * 9)
    filled = _shares.fill_up(owner, 3, 5, np.random.default_rng(0))
    assert np.bincount(filled).tolist() == [7, 7, 5]
