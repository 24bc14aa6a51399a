"""Weights of clients."""

import jax.numpy as jnp
import pytest

from gptfl_jax.fl import sums


def test_weightings():
    examples = jnp.array([0, 3, 5])
    assert sums.weighting("examples")(examples).tolist() == [0, 3, 5]
    assert sums.weighting("uniform")(examples).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="weighting 'size': takes"):
        sums.weighting("size")
