"""Convolutions are flax's."""

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import nn


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=(3, 3)),
        dict(kernel_size=(3, 3), strides=2, padding=1, use_bias=False),
        dict(kernel_size=(3, 3), feature_group_count=2, padding=((0, 1), (1, 0))),
        dict(kernel_size=(3, 3), padding="VALID", kernel_dilation=2),
        dict(kernel_size=(3, 3), kernel_init=flax.linen.initializers.he_normal()),
        dict(kernel_size=5),
    ],
)
def test_conv_is_flax_conv(arguments):
    sizes = (9,) if arguments["kernel_size"] == 5 else (9, 8)
    inputs, key = random(2, 3, *sizes, 4), jax.random.key(0)
    ours, theirs = nn.Conv(6, **arguments), flax.linen.Conv(6, **arguments)
    variables = ours.init(key, inputs)
    reference = theirs.init(key, inputs)
    chex.assert_trees_all_equal(variables, reference)
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64) + 0.1, variables)
    expected = theirs.apply(variables, inputs)
    np.testing.assert_allclose(ours.apply(variables, inputs), expected, atol=1e-13)


def test_conv_computes_in_its_dtype():
    inputs = jnp.ones((1, 4, 4, 2), jnp.float32)
    layer = nn.Conv(2, (3, 3), dtype=jnp.bfloat16)
    outputs, variables = layer.init_with_output(jax.random.key(0), inputs)
    assert outputs.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32
