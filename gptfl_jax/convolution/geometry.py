"""Where the windows of a convolution lie, and padding and slices of what they see."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

Padding = str | int | Sequence[int | tuple[int, int]]


class Geometry(NamedTuple):
    """Where the windows of a convolution lie; an entry for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def out_sizes(self, sizes: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
        """Windows along each axis."""
        return tuple(
            max(0, (n + lo + hi - seen) // s + 1)
            for n, (lo, hi), seen, s in zip(
                sizes,
                self.padding,
                extents(window, self.dilation),
                self.stride,
                strict=True,
            )
        )


def extents(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Places from the first to the last that a window sees, along each axis."""
    return tuple((k - 1) * d + 1 for k, d in zip(window, dilation, strict=True))


def each_axis(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for every spatial axis."""
    if isinstance(value, int):
        return (value,) * rank
    if len(value) != rank:
        raise ValueError(f"{value} does not have one number for each of {rank} axes")
    return tuple(value)


def padding_widths(
    padding: Padding,
    sizes: Sequence[int],
    extent: Sequence[int],
    stride: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """Padding in any accepted form as a pair (before, after) for every axis."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"padding {padding!r}: takes SAME, VALID or numbers")
        return tuple(lax.padtype_to_pads(sizes, extent, stride, padding))
    if isinstance(padding, int):
        return ((padding, padding),) * len(sizes)
    if len(padding) != len(sizes):
        raise ValueError(f"padding {padding} does not name each of {len(sizes)} axes")
    return tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)


def pad(x: Array, widths: dict[int, tuple[int, int]]) -> Array:
    """Zeros (or cuts, where negative) before and after the axes named."""
    if not any(lo or hi for lo, hi in widths.values()):
        return x
    config = [(*widths.get(axis, (0, 0)), 0) for axis in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def every(x: Array, axis: int, start: int, count: int, step: int) -> Array:
    """`count` slices along an axis, `step` apart."""
    if count == 0:
        return lax.slice_in_dim(x, 0, 0, axis=axis)
    return lax.slice_in_dim(x, start, start + (count - 1) * step + 1, step, axis)


def keep(x: PyTree[Array]) -> PyTree[Array]:
    """`x`, on CPUs behind a barrier for the first half of XLA's passes.

    XLA for CPUs drops barriers before it fuses, so this does not decide what is stored;
    it stops earlier rewriting across the barrier. Without it a norm on 16x16x128 with
    its gradient took 1.3 times as long, convolutions about the same.
    """
    return lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of an array that a backward pass needs, but not its numbers."""

    sizes: tuple[int, ...]


def dense_obstacle(inputs, kernel, geometry) -> str:
    """Why no form applies that makes outputs of all places at once."""
    if set(geometry.stride) != {1}:
        return f"stride {geometry.stride}"
    return plain_obstacle(inputs, kernel, geometry)


def plain_obstacle(inputs, kernel, geometry) -> str:
    """Why no form applies that knows neither groups nor half precision nor cuts."""
    if geometry.groups != 1:
        return f"{geometry.groups} groups"
    if inputs.dtype not in (jnp.float32, jnp.float64):
        return str(inputs.dtype)
    if min(min(pair) for pair in geometry.padding) < 0:
        return f"padding {geometry.padding}"
    if 0 in geometry.out_sizes(inputs.shape[1:-1], kernel.shape[:-2]):
        return "inputs smaller than the window"
    return ""
