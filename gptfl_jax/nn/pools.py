"""Pools: the largest value or the mean of windows."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gptfl_jax import convolution
from gptfl_jax.convolution import Padding


def max_pool(
    inputs: Float[Array, "batch *spatial channels"],
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Float[Array, "batch *out_spatial channels"]:
    """Largest value of each window; padding never wins.

    Of equal values in a window, the first in reading order takes the gradient.

    Args:
        inputs: examples with the channels last.
        window: its size, one for all axes or one an axis.
        stride: steps between windows; by default the window's size.
        padding: as in `conv`.
    """
    window, stride, pads = _windows(inputs, window, stride, padding)
    if _side_by_side(window, stride, pads):
        return _max_of_tiles(inputs, window)
    return lax.reduce_window(
        inputs, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), _around(pads)
    )


def avg_pool(
    inputs: Float[Array, "batch *spatial channels"],
    window: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Float[Array, "batch *out_spatial channels"]:
    """Mean of each window.

    Args:
        inputs: examples with the channels last.
        window: its size, one for all axes or one an axis.
        stride: steps between windows; by default the window's size.
        padding: as in `conv`.
        count_include_pad: whether padding counts as zeros in the mean, as in PyTorch,
            or is left out of it.
    """
    window, stride, pads = _windows(inputs, window, stride, padding)
    if _side_by_side(window, stride, pads):
        return _mean_of_tiles(inputs, window)
    around = (1, *window, 1), (1, *stride, 1), _around(pads)
    total = lax.reduce_window(inputs, 0.0, lax.add, *around)
    if count_include_pad:
        return total / math.prod(window)
    ones = jnp.ones((1, *inputs.shape[1:-1], 1), inputs.dtype)
    return total / lax.reduce_window(ones, 0.0, lax.add, *around)


def adaptive_avg_pool(
    inputs: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch size size channels"]:
    """Means of size x size windows that cover a picture, as PyTorch's.

    Of n rows, window i has those from floor(i n / size) up to ceil((i + 1) n / size):
    where n is no multiple of `size` windows overlap, and repeat rows where it is less.
    """
    x = inputs
    for axis in (1, 2):
        n = inputs.shape[axis]
        if n == size:
            continue
        share = np.zeros((size, n), np.float32)
        for i in range(size):
            begin, end = i * n // size, -(-(i + 1) * n // size)
            share[i, begin:end] = 1 / (end - begin)
        share = jnp.asarray(share, x.dtype)
        x = jnp.tensordot(share, x, (1, axis), precision="highest")
        x = jnp.moveaxis(x, 0, axis)
    return x


def _windows(inputs, window, stride, padding):
    rank = inputs.ndim - 2
    window = convolution.each_axis(window, rank)
    stride = window if stride is None else convolution.each_axis(stride, rank)
    pads = convolution.padding_widths(padding, inputs.shape[1:-1], window, stride)
    return window, stride, pads


def _around(pads):
    return [(0, 0), *pads, (0, 0)]


# Pools whose windows lie side by side. XLA for CPUs runs a `reduce_window` and its
# gradient several times slower than maxima and sums of slices; elsewhere the slices do
# no harm. The gradients are written out such that neither reads more than it must.


def _side_by_side(window, stride, pads) -> bool:
    return window == stride and not any(lo or hi for lo, hi in pads)


def _tiles(x, window):
    """The values at each place of the windows, in reading order."""
    counts = [n // k for n, k in zip(x.shape[1:-1], window, strict=True)]
    parts = []
    for place in itertools.product(*map(range, window)):
        part = x
        for axis, (i, k, n) in enumerate(zip(place, window, counts, strict=True), 1):
            part = lax.slice_in_dim(part, i, i + (n - 1) * k + 1 if n else i, k, axis)
        parts.append(part)
    return parts


def _untile(parts, window, shape):
    """The inverse of `_tiles`; zero at the end of an axis, where no window was."""
    rank, counts = len(window), parts[0].shape[1:-1]
    x = jnp.stack(parts, -2).reshape(parts[0].shape[0], *counts, *window, shape[-1])
    order = [a for axis in range(rank) for a in (1 + axis, 1 + rank + axis)]
    x = x.transpose(0, *order, 1 + 2 * rank)
    x = x.reshape(shape[0], *(n * k for n, k in zip(counts, window, strict=True)), -1)
    ends = [
        (0, size - done, 0) for size, done in zip(shape[1:], x.shape[1:], strict=True)
    ]
    if any(end for _, end, _ in ends):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends])
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_tiles(inputs, window):
    return functools.reduce(jnp.maximum, _tiles(inputs, window))


def _max_of_tiles_forward(inputs, window):
    inputs = convolution.keep(inputs)
    outputs = _max_of_tiles(inputs, window)
    return outputs, (inputs, outputs)


def _max_of_tiles_backward(window, residuals, gradient):
    inputs, outputs = residuals
    taken = jnp.zeros(outputs.shape, bool)
    parts = []
    for part in _tiles(inputs, window):
        first = (part == outputs) & ~taken
        taken |= first
        parts.append(jnp.where(first, gradient, 0))
    return (_untile(parts, window, inputs.shape),)


_max_of_tiles.defvjp(_max_of_tiles_forward, _max_of_tiles_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _mean_of_tiles(inputs, window):
    return functools.reduce(jnp.add, _tiles(inputs, window)) / math.prod(window)


def _mean_of_tiles_forward(inputs, window):
    return _mean_of_tiles(inputs, window), convolution.Shape(inputs.shape)


def _mean_of_tiles_backward(window, shape, gradient):
    parts = [gradient / math.prod(window)] * math.prod(window)
    return (_untile(parts, window, shape.sizes),)


_mean_of_tiles.defvjp(_mean_of_tiles_forward, _mean_of_tiles_backward)
