"""Medians and trimmed means."""

import numpy as np
import pytest

from gptfl_jax.fl import aggregation

from .updates import UPDATES, combine


@pytest.mark.parametrize("lanes", [1, 2])
def test_median_of_odd_and_even_numbers(lanes):
    everyone = combine(aggregation.median(), UPDATES, [0.2] * 5, lanes)
    np.testing.assert_allclose(everyone, [1, 1])
    # Without the first: 3, -4, 100, 0 and 0, 8, 2, 1.
    updates = np.where(np.arange(5)[:, None] == 0, 0, UPDATES)
    four = combine(aggregation.median(), updates, [0, 0.25, 0.25, 0.25, 0.25], lanes)
    np.testing.assert_allclose(four, [1.5, 1.5])


def test_trimmed_mean():
    mean = combine(aggregation.trimmed_mean(0.2), UPDATES, [0.2] * 5)
    np.testing.assert_allclose(mean, [(1 + 3 + 0) / 3, (0 + 2 + 1) / 3], rtol=1e-6)
    plain = combine(aggregation.trimmed_mean(0.0), UPDATES, [0.2] * 5)
    np.testing.assert_allclose(plain, UPDATES.mean(0), rtol=1e-6)
    # In floats of 32 bits 0.42 * 150 is below 63, in those of 64 0.29 * 100 below 29.
    for fraction, count, cut in ((0.42, 150, 63), (0.29, 100, 29), (0.499, 3, 1)):
        squares = np.arange(count)[:, None] ** 2.0
        mean = combine(aggregation.trimmed_mean(fraction), squares, [1.0] * count)
        np.testing.assert_allclose(mean, squares[cut:-cut].mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match="trimmed fraction 0.5: takes"):
        aggregation.trimmed_mean(0.5)
