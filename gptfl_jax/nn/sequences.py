"""Sequences of several lengths in one array, padding behind the shorter ones."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def frame_mask(
    lengths: Int[Array, " batch"], frames: int
) -> Bool[Array, "batch frames"]:
    """True for the real frames, the first `lengths` of each clip."""
    return jnp.arange(frames) < lengths[:, None]


def hide_padding(
    x: Float[Array, "batch frames *rest"], lengths: Int[Array, " batch"] | None
) -> Float[Array, "batch frames *rest"]:
    """Zero behind each clip's end; the same without lengths."""
    if lengths is None:
        return x
    real = frame_mask(lengths, x.shape[1])
    return jnp.where(real.reshape(real.shape + (1,) * (x.ndim - 2)), x, 0)


def mean_over_time(
    x: Float[Array, "batch frames channels"], lengths: Int[Array, " batch"] | None
) -> Float[Array, "batch channels"]:
    """Mean over each clip's real frames, or over all without lengths."""
    if lengths is None:
        return x.mean(1)
    total = hide_padding(x, lengths).sum(1)
    return total / jnp.maximum(lengths, 1)[:, None].astype(x.dtype)
