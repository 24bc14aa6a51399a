"""What a round tells about its clients: how much they agree, how far they went.

Gradient diversity is that of Gradient Diversity: a Key Ingredient for Scalable
Distributed Learning (arXiv 1706.05699), with client updates in the place of gradients:

    diversity = sum_i |d_i|^2 / |sum_i d_i|^2

It is 1/k when k clients send the same update, 1 when their updates are orthogonal, and
grows without bound when they cancel. GPT-FL (arXiv 2306.02210) explains the gain from a
synthetic start by a lower diversity.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from gptfl_jax.fl.execution import ClientStats, Spread
from gptfl_jax.fl.sums import flat


class RoundMetrics(NamedTuple):
    """Scalars of one round. Those from `gradient_diversity` to `drift` are NaN without
    diagnostics, and where they are not defined (no client counted, updates of zero)."""

    train_loss: Float[Array, ""]
    """Mean over the examples trained on, each at the weights of its step."""
    clients: Int[Array, ""]
    """Clients whose updates counted."""
    dropped: Int[Array, ""]
    """Clients left out because they sent a NaN or an infinity."""
    failed: Bool[Array, ""]
    """No update counted: the state is as before, but for the number of the round."""
    examples: Int[Array, ""]
    """Examples that these clients own."""
    steps: Int[Array, ""]
    """Local steps of all clients."""
    bytes_down: Float[Array, ""]
    """Sent to the clients."""
    bytes_up: Float[Array, ""]
    """Sent by the clients that reported, also what was dropped then."""
    gradient_diversity: Float[Array, ""]
    inverse_gradient_diversity: Float[Array, ""]
    cosine_mean: Float[Array, ""]
    """Mean over clients of the cosine between their update and the mean update."""
    update_norm_mean: Float[Array, ""]
    update_norm_std: Float[Array, ""]
    update_norm_min: Float[Array, ""]
    update_norm_max: Float[Array, ""]
    mean_update_norm: Float[Array, ""]
    """Norm of the combined update, as the server optimizer sees it."""
    drift: Float[Array, ""]
    """Distance of the new weights from those the run started with."""


class Diversity(NamedTuple):
    """How much updates agree."""

    gradient_diversity: Float[Array, ""]
    inverse_gradient_diversity: Float[Array, ""]
    cosine_mean: Float[Array, ""]


def diversity(
    spread: Spread, norms: Float[Array, " clients"], counts: Bool[Array, " clients"]
) -> Diversity:
    """From the sums of updates and of their directions, over the clients that count."""
    squares = jnp.sum(jnp.where(counts, jnp.square(norms), 0))
    total = squared_norm(spread.total)
    along = jnp.vdot(spread.total, spread.directions)
    return Diversity(
        _ratio(squares, total),
        _ratio(total, squares),
        _ratio(along, jnp.sqrt(total) * counts.sum()),
    )


def norm_summary(
    norms: Float[Array, " clients"], counts: Bool[Array, " clients"]
) -> tuple[Array, Array, Array, Array]:
    """(mean, standard deviation, least, largest) over the clients that count."""
    number = counts.sum()
    mean = _ratio(jnp.sum(jnp.where(counts, norms, 0)), number)
    variance = _ratio(jnp.sum(jnp.where(counts, (norms - mean) ** 2, 0)), number)
    some = number > 0
    least = jnp.where(some, jnp.min(norms, where=counts, initial=jnp.inf), jnp.nan)
    largest = jnp.where(some, jnp.max(norms, where=counts, initial=0), jnp.nan)
    return mean, jnp.sqrt(variance), least, largest


def mean_loss(stats: ClientStats) -> Float[Array, ""]:
    """Training loss over the examples of clients whose update was finite."""
    rows = jnp.sum(jnp.where(stats.finite, stats.rows, 0))
    return _ratio(jnp.sum(jnp.where(stats.finite, stats.loss, 0)), rows)


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """Sum of the squares of all leaves' entries."""
    entries = flat(tree)
    return jnp.vdot(entries, entries)


def distance(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """Euclidean distance of two trees."""
    return jnp.sqrt(squared_norm(jax.tree.map(lambda x, y: x - y, a, b)))


def size_in_bytes(tree: PyTree) -> int:
    """Bytes it takes to send a tree as it is."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _ratio(numerator: Array, denominator: Array) -> Float[Array, ""]:
    denominator = denominator.astype(numerator.dtype)
    return jnp.where(
        denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), jnp.nan
    )
