"""Means that outliers do not move: they sort the updates, coordinate by coordinate."""

import fractions
import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gptfl_jax import rules
from gptfl_jax.fl.sums import Aggregation, accumulator_dtype, divisor, weighting


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

    # As it is written: the product of floats may fall just below a whole number.
    share = fractions.Fraction(str(fraction))

    def combine(ordered, valid, count):
        cuts = [math.floor(share * m) for m in range(ordered.shape[0] + 1)]
        cut = jnp.asarray(cuts, jnp.int32)[count]
        rank = jnp.arange(ordered.shape[0])
        kept = (rank >= cut) & (rank < count - cut)
        kept = kept.reshape((-1,) + (1,) * (ordered.ndim - 1))
        return jnp.sum(jnp.where(kept, ordered, 0), 0) / divisor(count - 2 * cut)

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
