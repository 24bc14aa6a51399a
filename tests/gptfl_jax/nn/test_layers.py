"""Convolutions and linear layers are flax's."""

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


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 0, 4), (2, 3, 5, 4)])
def test_dense_is_flax_dense(shape):
    inputs, key = random(*shape), jax.random.key(0)
    arguments = dict(features=6, bias_init=flax.linen.initializers.ones)
    ours, theirs = nn.Dense(**arguments), flax.linen.Dense(**arguments)
    variables = ours.init(key, inputs)
    chex.assert_trees_all_equal(variables, theirs.init(key, inputs))

    def loss(layer, variables, inputs):
        return jnp.sin(layer.apply(variables, inputs)).sum()

    for of in (
        lambda layer: layer.apply(variables, inputs),
        lambda layer: jax.grad(loss, (1, 2))(layer, variables, inputs),
    ):
        chex.assert_trees_all_close(of(ours), of(theirs), atol=1e-6)


def test_the_gradient_of_dense_sums_over_one_axis():
    """Over several, XLA for CPUs writes both factors anew (`Dense`)."""
    layer, inputs = nn.Dense(6), random(2, 3, 5, 4).astype(jnp.float32)
    variables = layer.init(jax.random.key(0), inputs)

    def loss(variables, inputs):
        return jnp.square(layer.apply(variables, inputs)).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables, inputs)
    summed = [
        equation.params["dimension_numbers"][0]
        for equation in jaxpr.eqns
        if equation.primitive.name == "dot_general"
    ]
    assert len(summed) == 3 and all(len(axes) == 1 for axes, _ in summed)
