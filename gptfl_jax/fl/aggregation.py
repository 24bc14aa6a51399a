"""How a cohort's updates become one: weighted mean, clip and noise, robust means.

An `Aggregation` is a sum in four pieces. Updates are added while clients train, one at
a time or several lanes at once, and the sums of several devices add up: the mean of a
cohort never needs all its updates in memory. Robust means do need them, and keep a
buffer of them in place of a sum.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from gptfl_jax import rules

Weighting = Callable[[Array], Array]


class Aggregation(NamedTuple):
    """How updates are weighted and combined.

    Sums over devices are taken leaf by leaf: `init` gives zeros, `add` adds.
    """

    weight: Weighting
    """Examples of each client -> its weight, not normalised."""
    init: Callable[[PyTree, int], Any]
    """(zeros like one update, cohort size) -> empty sums."""
    add: Callable[[Any, PyTree, Array, Array], Any]
    """(sums, updates [lanes, ...], weights [lanes], cohort positions [lanes]) -> sums.

    A weight of 0 leaves the sums as they are; such an update is all zeros."""
    finish: Callable[[Any, Array, PRNGKeyArray], PyTree]
    """(sums, weights [cohort], key) -> the combined update."""


def weighting(name: str) -> Weighting:
    """ "examples" (a client counts as often as it has examples) or "uniform".

    By examples the mean update descends the mean loss over all examples, as in
    Communication-Efficient Learning of Deep Networks from Decentralized Data
    (arXiv 1602.05629). The original GPT-FL's mean is uniform. A client without examples
    counts nothing either way.

    Raises:
      ValueError: another name.
    """
    if name == "examples":
        return lambda examples: examples.astype(jnp.result_type(float))
    if name == "uniform":
        return lambda examples: (examples > 0).astype(jnp.result_type(float))
    raise ValueError(f"weighting {name!r}: takes 'examples' or 'uniform'")


def mean(weight: str = "examples") -> Aggregation:
    """Mean: sum_i w_i d_i / sum_i w_i, as a running sum."""
    return Aggregation(
        weight=weighting(weight),
        init=lambda update, cohort: jax.tree.map(accumulator, update),
        add=lambda sums, updates, weights, positions: add_weighted(
            sums, updates, weights
        ),
        finish=lambda sums, weights, key: scale(sums, 1 / _positive(weights.sum())),
    )


def clipped_mean(
    max_norm: rules.Positive = 1.0, noise_multiplier: rules.NonNegative = 0.0
) -> Aggregation:
    """Clipped mean: of updates clipped to a norm, with Gaussian noise (privacy).

        (sum_i d_i min(1, max_norm / |d_i|) + N(0, (noise_multiplier max_norm)^2)) / k

    Learning Differentially Private Recurrent Language Models (arXiv 1710.06963), with
    uniform weights and k the clients that reported: privacy of users. Accounting is
    left to the caller.
    Only updates are clipped and noisy: batch statistics, and what SCAFFOLD and FedNova
    send besides, are averaged as they are.

    Args:
        max_norm: largest norm of an update.
        noise_multiplier: standard deviation of the noise, as a multiple of max_norm.
    """

    def add(sums, updates, weights, positions):
        squares = sum(
            jnp.sum(jnp.square(x.astype(accumulator_dtype(x.dtype))), axis=_tail(x))
            for x in jax.tree.leaves(updates)
        )
        shrink = jnp.minimum(1, max_norm / jnp.maximum(jnp.sqrt(squares), 1e-30))
        reported = (weights > 0).astype(shrink.dtype)
        return add_weighted(sums, updates, reported * shrink)

    def finish(sums, weights, key):
        leaves, structure = jax.tree.flatten(sums)
        keys = jax.random.split(key, len(leaves))
        deviation = noise_multiplier * max_norm
        noisy = [
            x + deviation * jax.random.normal(k, x.shape, x.dtype)
            for x, k in zip(leaves, keys, strict=True)
        ]
        reported = jnp.sum(weights > 0)
        return scale(jax.tree.unflatten(structure, noisy), 1 / _positive(reported))

    return mean("uniform")._replace(add=add, finish=finish)


def trimmed_mean(
    fraction: Annotated[int | float, rules.number(least=0, below=0.5)] = 0.1,
) -> Aggregation:
    """Trimmed mean: per coordinate, without the largest and the smallest ones.

    Byzantine-Robust Distributed Learning (arXiv 1803.01498). Uniform weights; keeps all
    updates of the cohort in memory. Of m updates floor(fraction m) are cut at each end.

    Args:
        fraction: share of the updates that is cut at each end of a coordinate.

    Raises:
        ValueError: a fraction outside [0, 0.5).
    """
    if not 0 <= fraction < 0.5:
        raise ValueError(f"trimmed fraction {fraction}: takes a number in [0, 0.5)")

    def combine(ordered, valid, count):
        cut = jnp.floor(fraction * count).astype(jnp.int32)
        rank = jnp.arange(ordered.shape[0])
        kept = (rank >= cut) & (rank < count - cut)
        kept = kept.reshape((-1,) + (1,) * (ordered.ndim - 1))
        return jnp.sum(jnp.where(kept, ordered, 0), 0) / _positive(count - 2 * cut)

    return _of_ordered(combine)


def median() -> Aggregation:
    """Median: per coordinate (arXiv 1803.01498). Keeps all updates in memory."""

    def combine(ordered, valid, count):
        low, high = jnp.maximum(count - 1, 0) // 2, count // 2
        high = jnp.minimum(high, ordered.shape[0] - 1)
        pair = jnp.take(ordered, jnp.stack([low, high]), axis=0)
        return jnp.where(count > 0, (pair[0] + pair[1]) / 2, 0)

    return _of_ordered(combine)


def _of_ordered(combine: Callable[[Array, Array, Array], Array]) -> Aggregation:
    def init(update, cohort):
        return jax.tree.map(
            lambda x: jnp.zeros((cohort, *x.shape), accumulator_dtype(x.dtype)), update
        )

    def add(buffers, updates, weights, positions):
        # Empty lanes stand at a position beyond the cohort, and are dropped there.
        return jax.tree.map(
            lambda buffer, x: buffer.at[positions].add(
                x.astype(buffer.dtype), mode="drop"
            ),
            buffers,
            updates,
        )

    def finish(buffers, weights, key):
        valid = weights > 0
        count = jnp.sum(valid)

        def one(buffer):
            mask = valid.reshape((-1,) + (1,) * (buffer.ndim - 1))
            # Those that do not count come last, behind every number.
            ordered = jnp.sort(jnp.where(mask, buffer, jnp.inf), axis=0)
            return combine(ordered, valid, count)

        return jax.tree.map(one, buffers)

    return Aggregation(weighting("uniform"), init, add, finish)


def accumulator_dtype(dtype: Any) -> Any:
    """Sums of half-precision numbers are taken in float32."""
    return jnp.promote_types(dtype, jnp.float32)


def accumulator(like: Array | jax.ShapeDtypeStruct) -> Array:
    """Zeros for a sum of arrays like this one."""
    return jnp.zeros(like.shape, accumulator_dtype(like.dtype))


def add_weighted(
    sums: PyTree, values: PyTree, weights: Float[Array, " lanes"]
) -> PyTree:
    """sums + sum over lanes of weight * value, every value [lanes, ...].

    Never `(weights * values).sum(0)`: after a vmapped scan XLA then runs the whole scan
    several times slower on CPU (measured: 5x).
    """

    def add(total, value):
        value, scale = value.astype(total.dtype), weights.astype(total.dtype)
        if value.shape[0] == 1:
            return total + scale[0] * value[0]
        return total + jnp.tensordot(scale, value, 1, precision=lax.Precision.HIGHEST)

    return jax.tree.map(add, sums, values)


def scale(tree: PyTree, factor: Float[Array, ""]) -> PyTree:
    """Every leaf times a number."""
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def _positive(total: Float[Array, ""] | Int[Array, ""]) -> Float[Array, ""]:
    total = total.astype(jnp.result_type(float))
    return jnp.where(total > 0, total, 1)


def _tail(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))
