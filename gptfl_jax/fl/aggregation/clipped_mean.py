"""The mean of clipped updates, with noise."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gptfl_jax import rules
from gptfl_jax.fl.aggregation.mean import mean
from gptfl_jax.fl.sums import (
    Aggregation,
    accumulator_dtype,
    add_weighted,
    divisor,
    scale,
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
        return scale(jax.tree.unflatten(structure, noisy), 1 / divisor(reported))

    return mean("uniform")._replace(add=add, finish=finish)


def _tail(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))
