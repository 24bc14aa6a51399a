"""Weights of clients, and trees as one vector."""

import jax.numpy as jnp
import pytest

from gptfl_jax.fl import sums


def test_weightings():
    examples = jnp.array([0, 3, 5])
    assert sums.weighting("examples")(examples).tolist() == [0, 3, 5]
    assert sums.weighting("uniform")(examples).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="weighting 'size': takes"):
        sums.weighting("size")


def test_a_flat_tree_holds_all_numbers_as_wide_as_their_sums():
    tree = {"a": jnp.array([[1.0, 2.0]], jnp.bfloat16), "b": jnp.array([3.0])}
    found = sums.flat(tree)
    assert found.tolist() == [1, 2, 3]
    assert found.dtype == jnp.float32 and sums.flat({}).shape == (0,)
