"""The weighted mean."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.fl import aggregation

from .updates import UPDATES, combine


@pytest.mark.parametrize("lanes", [1, 2])
def test_mean(lanes):
    weights = [0.1, 0.2, 0.3, 0.0, 0.4]
    mean = combine(aggregation.mean(), UPDATES, weights, lanes)
    # (0.1 + 0.6 - 1.2, -0.2 + 2.4 + 0.4) / 1
    np.testing.assert_allclose(mean, [-0.5, 2.6], rtol=1e-6)


def test_weights_of_those_left_are_normalised():
    mean = combine(aggregation.mean(), UPDATES, [0.1, 0.3, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(mean, [2.5, -0.5], rtol=1e-6)
    nothing = combine(aggregation.mean(), UPDATES * 0, [0.0] * 5)
    np.testing.assert_array_equal(nothing, [0, 0])


def test_half_precision_is_summed_in_float32():
    how = aggregation.mean()
    like = {"w": jnp.zeros(1, jnp.float16)}
    sums = how.init(like, 1)
    assert sums["w"].dtype == jnp.float32
    one = {"w": jnp.full((4, 1), 3e4, jnp.float16)}  # The sum overflows float16.
    sums = how.add(sums, one, jnp.ones(4), jnp.arange(4))
    np.testing.assert_allclose(sums["w"], 12e4, rtol=1e-3)
