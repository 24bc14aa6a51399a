"""Sums over clients: what an aggregation is, weights, and sums wide enough for them.

An `Aggregation` is a sum in four pieces. Updates are added while clients train, one at
a time or several lanes at once, and the sums of several devices add up: the mean of a
cohort never needs all its updates in memory. Robust means do need them, and keep a
buffer of them in place of a sum.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

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


def accumulator_dtype(dtype: Any) -> Any:
    """Sums of half-precision numbers are taken in float32."""
    return jnp.promote_types(dtype, jnp.float32)


def accumulator(like: Array | jax.ShapeDtypeStruct) -> Array:
    """Zeros for a sum of arrays like this one."""
    return jnp.zeros(like.shape, accumulator_dtype(like.dtype))


def flat(tree: PyTree) -> Float[Array, " entries"]:
    """All numbers of a tree one behind the other, as wide as their sums.

    What is done to one array is compiled once, not once a leaf.
    """
    leaves = [
        x.ravel().astype(accumulator_dtype(x.dtype)) for x in jax.tree.leaves(tree)
    ]
    return jnp.concatenate(leaves) if leaves else jnp.zeros(0)


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


def divisor(total: Float[Array, ""] | Int[Array, ""]) -> Float[Array, ""]:
    """A total to divide by: as a real number, 1 where it is 0."""
    total = total.astype(jnp.result_type(float))
    return jnp.where(total > 0, total, 1)
