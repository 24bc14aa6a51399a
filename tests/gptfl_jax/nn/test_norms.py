"""Norms against hand-worked numpy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import convolution, nn
from gptfl_jax.nn import norms


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def normalised(x, axes, epsilon):
    mean = x.mean(axes, keepdims=True)
    variance = ((x - mean) ** 2).mean(axes, keepdims=True)
    return (x - mean) / (variance + epsilon) ** 0.5


def group_norm(x, groups, epsilon):
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return normalised(grouped, axes, epsilon).reshape(x.shape)


NORMS = {
    "instance": (nn.InstanceNorm(0.1), lambda x: normalised(x, (1, 2), 0.1)),
    "group": (nn.GroupNorm(2, 0.1), lambda x: group_norm(x, 2, 0.1)),
    "one group": (nn.GroupNorm(1, 0.1), lambda x: normalised(x, (1, 2, 3), 0.1)),
    "layer": (nn.LayerNorm(0.1), lambda x: normalised(x, (-1,), 0.1)),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_and_their_gradients(norm):
    layer, formula = norm
    x, cotangent = random(2, 4, 3, 6) + 3, random(2, 4, 3, 6, seed=1)
    params = {"scale": random(6, seed=2), "bias": random(6, seed=3)}

    @functools.partial(jax.jit, static_argnums=0)
    def run(norm):
        outputs, pull = jax.vjp(norm, params, x)
        return outputs, pull(cotangent)

    result = run(lambda p, x: layer.apply({"params": p}, x))
    known = run(lambda p, x: formula(x) * p["scale"] + p["bias"])
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(check, result, known)


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_norms_in_other_types(norm):
    layer, formula = norm
    x = random(2, 4, 3, 6)
    # A mean of 100 in float32: E[x^2] - E[x]^2 would be wrong by 3e-3.
    far = (x + 100).astype(jnp.float32)
    outputs, variables = layer.init_with_output(jax.random.key(0), far)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, formula(far.astype(float)), atol=5e-5)
    half = x.astype(jnp.bfloat16)
    outputs = layer.apply(variables, half)
    assert outputs.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        outputs.astype(float), formula(half.astype(float)), atol=0.02
    )
    bare = layer.clone(use_scale=False, use_bias=False)
    assert not bare.init(jax.random.key(0), x)
    np.testing.assert_allclose(bare.apply({}, x), formula(x), atol=1e-13)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="parts are for CPUs")
def test_group_norm_in_parts(monkeypatch):
    """Outside of loops, here of two positions, and one that is left over."""
    monkeypatch.setattr(norms, "_PART_BYTES", 2 * 2 * 6 * 8)
    x, params = random(2, 7, 3, 6) + 3, {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    layer = nn.GroupNorm(2, 0.1)
    run = functools.partial(layer.apply, {"params": params})
    with convolution.outside_loops():
        assert "scan" in str(jax.make_jaxpr(run)(x))
        outputs = run(x)
    np.testing.assert_allclose(outputs, group_norm(x, 2, 0.1), rtol=0, atol=1e-12)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="6 channels .* 4 groups"):
        nn.GroupNorm(4, 1e-5).init(jax.random.key(0), jnp.zeros((1, 2, 6)))


def test_batch_norm():
    layer, x = nn.BatchNorm(epsilon=0.1, momentum=0.75), random(5, 2, 3) + 2
    variables = layer.init(jax.random.key(0), x, train=True)
    outputs, state = layer.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(outputs, normalised(x, (0, 1), 0.1), atol=1e-13)
    mean, unbiased = x.mean((0, 1)), x.var((0, 1), ddof=1)
    running = state["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.25 * mean, rtol=1e-6)
    np.testing.assert_allclose(running["var"], 0.75 + 0.25 * unbiased, rtol=1e-6)
    outputs = layer.apply({**variables, **state}, x, train=False)
    expected = (x - 0.25 * mean) / (0.75 + 0.25 * unbiased + 0.1) ** 0.5
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_batch_norm_leaves_masked_rows_out():
    layer, x = nn.BatchNorm(epsilon=0.1), random(5, 2, 3)
    variables = layer.init(jax.random.key(0), x, train=True)
    mask = jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])

    def train(x, mask):
        return layer.apply(variables, x, True, mask, mutable=["batch_stats"])

    outputs, state = train(x, mask)
    expected, expected_state = train(x[mask > 0], None)
    np.testing.assert_allclose(outputs[mask > 0], expected, atol=1e-13)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-7)
    # Padding alone, as in an idle lane, gives numbers.
    outputs, state = train(x, jnp.zeros(5))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs, state)))


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0] * 5])
def test_gradients_of_batch_norm(mask):
    layer, x, cotangent = (
        nn.BatchNorm(0.1),
        random(5, 2, 3) + 3,
        random(5, 2, 3, seed=1),
    )
    mask = jnp.array(mask, float)
    stats = layer.init(jax.random.key(0), x, train=True)["batch_stats"]
    params = {"scale": random(3, seed=2), "bias": random(3, seed=3)}

    def run(norm):
        outputs, pull = jax.vjp(norm, params, x)
        return outputs, pull(cotangent)

    def known(params, x):
        real = mask[:, None, None]
        count = jnp.maximum(2 * mask.sum(), 1)
        mean = (real * x).sum((0, 1)) / count
        variance = (real * (x - mean) ** 2).sum((0, 1)) / count
        x = (x - mean) / (variance + 0.1) ** 0.5
        return x * params["scale"] + params["bias"]

    def ours(params, x):
        variables = {"params": params, "batch_stats": stats}
        return layer.apply(variables, x, True, mask, mutable=["batch_stats"])[0]

    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(check, run(ours), run(known))


def test_layer_norm_of_several_axes():
    x = random(2, 3, 4, 2)
    layer = nn.LayerNorm(0.1, axes=3)
    variables = layer.init(jax.random.key(0), x)
    assert variables["params"]["scale"].shape == (3, 4, 2)
    np.testing.assert_allclose(
        layer.apply(variables, x), normalised(x, (1, 2, 3), 0.1), atol=1e-12
    )


def test_batch_norm_without_running_statistics():
    x, mask = random(3, 4, 2), jnp.asarray([True, False, True])
    layer = nn.BatchNorm(0.1, track_running_stats=False)
    variables = layer.init(jax.random.key(0), x, False)
    assert set(variables) == {"params"}
    outputs = layer.apply(variables, x, False)
    np.testing.assert_allclose(outputs, normalised(x, (0, 1), 0.1), atol=1e-12)
    outputs = layer.apply(variables, x, False, mask)
    expected = normalised(x[mask], (0, 1), 0.1)
    np.testing.assert_allclose(outputs[mask], expected, atol=1e-12)


def test_batch_norm_leaves_masked_positions_out():
    x = random(2, 3, 4, 5)
    mask = jnp.asarray([[True, True, False], [True, False, False]])
    layer = nn.BatchNorm(0.1)
    variables = layer.init(jax.random.key(0), x, False)
    outputs, state = layer.apply(variables, x, True, mask, mutable=["batch_stats"])
    real = np.asarray(x)[np.asarray(mask)].reshape(-1, 5)
    expected = normalised(real, 0, 0.1)
    np.testing.assert_allclose(outputs[mask].reshape(-1, 5), expected, atol=1e-12)
    np.testing.assert_allclose(
        state["batch_stats"]["mean"], 0.1 * real.mean(0), atol=1e-12
    )
