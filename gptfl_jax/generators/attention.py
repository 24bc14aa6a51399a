"""Softmax attention, in the form that is quick and small on the machine at hand."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Attention logits held at once, in elements of 4 bytes: above it, blocks of queries.
_MAX_LOGITS = 2**28
# The same on a CPU, where it is one head at a time if a head has many, as these stay in
# the cache: 2 x 10 heads of 1,024 positions took 38 ms instead of 126.
_MAX_CPU_LOGITS = 2**20
_MANY_CPU_LOGITS = 2**18
# Features of a head that cuDNN takes on every GPU that has its flash attention.
_MAX_FLASH_FEATURES = 128


def attention(
    query: Float[Array, "batch queries heads features"],
    key: Float[Array, "batch keys heads features"],
    value: Float[Array, "batch keys heads features"],
    *,
    causal: bool = False,
    mask: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch queries heads features"]:
    """softmax(query key^T / sqrt(features)) value, for each head.

    Logits and softmax are float32 whatever the inputs are. In half precision on a GPU
    of NVIDIA it is cuDNN's flash attention (Dao et al., arXiv 2205.14135), which never
    holds the logits. Elsewhere long sequences are computed in blocks of queries, so
    that memory stays bounded.

    Args:
        query: What asks.
        key: What is compared with `query`.
        value: What is averaged.
        causal: Whether query i sees only keys 0 to i.
        mask: The keys that are seen; None for all. At least one is.

    Returns:
        The averages, in the dtype of the inputs.
    """
    if query.dtype == jnp.float16 and jax.default_backend() == "cpu":
        # XLA has no products of float16 with float32 sums on a CPU.
        whole = (x.astype(jnp.float32) for x in (query, key, value))
        return attention(*whole, causal=causal, mask=mask).astype(jnp.float16)
    batch, queries, heads, _ = query.shape
    logits = queries * key.shape[1]
    if mask is not None:
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask[:, None, None, :], is_causal=causal
        )
    if _has_flash(query):
        return jax.nn.dot_product_attention(
            query, key, value, is_causal=causal, implementation="cudnn"
        )
    if causal:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)
    if jax.default_backend() == "cpu":
        by_head = logits >= _MANY_CPU_LOGITS
        return (_head_by_head if by_head else _all_heads)(query, key, value)
    blocks = _blocks(queries, batch * heads * logits, _MAX_LOGITS)
    if blocks == 1:
        return jax.nn.dot_product_attention(query, key, value)
    split = query.reshape(batch, blocks, queries // blocks, *query.shape[2:])
    split = jax.lax.map(
        lambda block: jax.nn.dot_product_attention(block, key, value),
        jnp.moveaxis(split, 1, 0),
    )
    return jnp.moveaxis(split, 0, 1).reshape(query.shape)


def _has_flash(query) -> bool:
    """Whether cuDNN has flash attention for such arrays: from NVIDIA's Ampere on."""
    half = query.dtype in (jnp.float16, jnp.bfloat16)
    if not half or jax.default_backend() != "gpu":
        return False
    # "8.0"; of AMD's GPUs it is a name.
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    generation = capability.partition(".")[0]
    features = query.shape[-1]
    fits = features <= _MAX_FLASH_FEATURES and features % 8 == 0
    return fits and generation.isdecimal() and int(generation) >= 8


def _all_heads(query, key, value):
    averages = _averages(*(jnp.moveaxis(x, 2, 1) for x in (query, key, value)))
    return jnp.moveaxis(averages, 1, 2)


def _head_by_head(query, key, value):
    batch, queries, heads, features = query.shape
    blocks = _blocks(queries, queries * key.shape[1], _MAX_CPU_LOGITS)

    def by_head(x, parts=1):
        """[batch x heads x parts, length, features]"""
        x = jnp.moveaxis(x, 2, 1)
        return x.reshape(batch * heads * parts, -1, features)

    key, value = by_head(key), by_head(value)

    def block(numbered):
        number, query = numbered
        head = number // blocks
        return _averages(query, key[head], value[head])

    numbers = jnp.arange(batch * heads * blocks)
    outputs = jax.lax.map(block, (numbers, by_head(query, blocks)))
    outputs = outputs.reshape(batch, heads, queries, features)
    return jnp.moveaxis(outputs, 1, 2)


def _averages(query, key, value):
    """Of arrays [..., length, features], divided by the sums of weights at the end.

    Dividing the averages in place of the logits saves a pass over these: heads of 4,096
    positions took 0.16 s instead of 0.37 on two cores.
    """
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    logits = product(query, key.mT) * query.shape[-1] ** -0.5
    largest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    sums = weights.sum(-1, keepdims=True)
    return (product(weights.astype(value.dtype), value) / sums).astype(query.dtype)


def _blocks(queries, logits, most):
    """Into how many blocks of equal size the queries have to be split."""
    return next(
        n
        for n in range(1, queries + 1)
        if not queries % n and logits / n <= most or n == queries
    )
