"""Five updates, and how training combines them."""

import jax
import jax.numpy as jnp
import numpy as np

UPDATES = np.array([[1.0, -2.0], [3.0, 0.0], [-4.0, 8.0], [100.0, 2.0], [0.0, 1.0]])


def combine(how, updates, weights, lanes=2, key=None):
    """Adds updates a few lanes at a time, as training does, then finishes."""
    size = len(updates)
    updates, weights = jnp.asarray(updates), jnp.asarray(weights)
    sums = how.init({"w": jnp.zeros(updates.shape[1])}, size)
    for first in range(0, size, lanes):
        positions = jnp.arange(first, first + lanes)
        inside = positions < size
        index = jnp.minimum(positions, size - 1)
        some = jnp.where(inside[:, None], updates[index], 0)
        weight = jnp.where(inside, weights[index], 0)
        sums = how.add(sums, {"w": some}, weight, positions)
    key = jax.random.key(0) if key is None else key
    return np.asarray(how.finish(sums, weights, key)["w"])
