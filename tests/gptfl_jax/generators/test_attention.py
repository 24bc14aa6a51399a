"""Attention against its formula, in all its forms."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.generators import attention as module
from gptfl_jax.generators.attention import attention


def inputs(features=4, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = (2, 12, 2, features), (2, 5, 2, features), (2, 5, 2, features)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def test_attention_in_blocks_of_queries_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.normal(size=(2, 12, 2, 4)))
    key, value = jnp.asarray(rng.normal(size=(2, 2, 5, 2, 4)))
    whole = attention(query, key, value)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    # 20 a query: 4 blocks of 3.
    monkeypatch.setattr(module, "_MAX_LOGITS", 70)
    np.testing.assert_allclose(attention(query, key, value), whole, atol=1e-6)
    # On a CPU head by head, here 5 logits a query: 3 blocks of 4, then all in one.
    monkeypatch.setattr(module, "_MANY_CPU_LOGITS", 60)
    for most in (20, 60):
        monkeypatch.setattr(module, "_MAX_CPU_LOGITS", most)
        outputs = attention(query, key, value)
        np.testing.assert_allclose(outputs, whole, atol=1e-6)


@pytest.mark.parametrize("many", [1, 10**6])
def test_gradients_are_those_of_the_formula(monkeypatch, many):
    """Head by head and of all at once."""
    monkeypatch.setattr(module, "_MANY_CPU_LOGITS", many)

    def formula(query, key, value):
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)

    def of(function):
        scalar = lambda *inputs: jnp.sum(jnp.sin(function(*inputs)))  # noqa: E731
        return jax.grad(scalar, argnums=(0, 1, 2))(*inputs())

    for found, expected in zip(of(attention), of(formula), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_causal_attention_sees_no_later_keys():
    query, _, _ = inputs()
    found = attention(query, query, query, causal=True)
    for i in (0, 3, 11):
        alone = attention(query[:, i : i + 1], query[:, : i + 1], query[:, : i + 1])
        np.testing.assert_allclose(found[:, i : i + 1], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("capability", "dtype", "features", "flash"),
    [
        ("8.0", jnp.bfloat16, 64, True),
        ("9.0", jnp.float16, 40, True),
        ("9.0", jnp.float32, 64, False),
        ("9.0", jnp.bfloat16, 20, False),
        ("9.0", jnp.bfloat16, 160, False),
        ("7.5", jnp.float16, 64, False),
        ("gfx90a", jnp.bfloat16, 64, False),
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_on_gpus_is_flash_attention(
    monkeypatch, capability, dtype, features, flash, causal
):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    asked = []

    def recorded(query, key, value, *, is_causal=False, implementation=None):
        asked.append((is_causal, implementation))
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    attention(*inputs(features, dtype), causal=causal)
    assert asked == [(causal, "cudnn" if flash else None)]


def test_logits_beyond_the_range_of_float16():
    query, key, value = inputs(40, jnp.float16)
    query, key = 200 * query, 200 * key
    wide = [x.astype(jnp.float32) for x in (query, key, value)]
    products = jnp.einsum("bqhd,bkhd->bhqk", *wide[:2])
    assert jnp.abs(products).max() > 2 * 65504
    found, whole = attention(query, key, value), attention(*wide)
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, whole, atol=1e-3)
