"""The form "row_split": windows unfolded along the width only."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gptfl_jax.convolution.geometry import Shape, dense_obstacle, every, keep, pad


def row_split_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    if kernel.ndim != 4:
        return f"{kernel.ndim - 2} spatial axes"
    return dense_obstacle(inputs, kernel, geometry)


# What the rows convolved at once may hold. Unfolded and with all terms, they then fit
# in a processor's cache (32x32x16: 0.23 in place of 0.31 ms of its time an example).
_BLOCK_BYTES = 2**19


def row_split_in_blocks(inputs, kernel, geometry, precision):
    """As `_row_split`, some rows of a large batch at a time, whose unfolded inputs are
    not kept for the backward pass but made again."""
    batch = inputs.shape[0]
    row_bytes = max(1, math.prod(inputs.shape[1:]) * inputs.dtype.itemsize)
    fit = max(1, _BLOCK_BYTES // row_bytes)
    rows = next((n for n in range(min(fit, batch), 0, -1) if batch % n == 0), 0)
    if rows in (0, 1, batch):
        return _row_split(inputs, kernel, geometry, precision)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(inputs, kernel):
        return _row_split(inputs, kernel, geometry, precision)

    blocks = inputs.reshape(-1, rows, *inputs.shape[1:])
    outputs = lax.map(lambda block_inputs: block(block_inputs, kernel), blocks)
    return outputs.reshape(batch, *outputs.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _row_split(inputs, kernel, geometry, precision):
    return _row_split_forward(inputs, kernel, geometry, precision)[0]


def _row_split_forward(inputs, kernel, geometry, precision):
    window_rows, window_columns, channels, features = kernel.shape
    (top, _), (left, right) = geometry.padding
    down, along = geometry.dilation
    batch, height, width = inputs.shape[:3]
    rows, columns = geometry.out_sizes((height, width), kernel.shape[:2])
    padded = pad(inputs, {2: (left, right)})
    views = [every(padded, 2, j * along, columns, 1) for j in range(window_columns)]
    unfolded = keep(jnp.concatenate(views, -1)).reshape(-1, window_columns * channels)
    # [(column, channel), (row, feature)]: all rows of the window in one product.
    flat = kernel.transpose(1, 2, 0, 3).reshape(unfolded.shape[-1], -1)
    terms = keep(jnp.matmul(unfolded, flat, precision=precision))
    terms = terms.reshape(batch, height, columns, window_rows, features)
    shifts = [i * down - top for i in range(window_rows)]
    shapes = Shape(inputs.shape), Shape(kernel.shape)
    return _shifted_sum(terms, 1, shifts, rows), (*shapes, unfolded, flat)


def _row_split_backward(geometry, precision, residuals, gradient):
    shape, kernel_shape, unfolded, flat = residuals
    window_rows, window_columns, channels, features = kernel_shape.sizes
    (top, _), (left, _) = geometry.padding
    down, along = geometry.dilation
    batch, height, width, _ = shape.sizes
    rows, columns = gradient.shape[1:3]
    # Row h of the inputs meets row i of the window in row h - i * down + top.
    first = (window_rows - 1) * down - top
    padded = pad(gradient, {1: (first, height - rows + top)})
    views = [
        every(padded, 1, (window_rows - 1 - i) * down, height, 1)
        for i in range(window_rows)
    ]
    tall = keep(jnp.concatenate(views, -1)).reshape(-1, window_rows * features)
    d_flat = jnp.matmul(unfolded.T, tall, precision=precision)
    d_kernel = d_flat.reshape(window_columns, channels, window_rows, features)
    terms = keep(jnp.matmul(tall, flat.T, precision=precision))
    terms = terms.reshape(batch, height, columns, window_columns, channels)
    shifts = [left - j * along for j in range(window_columns)]
    d_inputs = _shifted_sum(terms, 2, shifts, width)
    return d_inputs, d_kernel.transpose(2, 0, 1, 3)


_row_split.defvjp(_row_split_forward, _row_split_backward)


def _shifted_sum(terms, axis, shifts, size):
    """out[p] = sum_i terms[p + shifts[i], ..., i, :] over `axis`; outside is zero.

    Written as segments of positions at which the same terms exist, so that neither
    padding nor a comparison is needed.
    """
    count = terms.shape[axis]
    bounds = {0, size}
    for shift in shifts:
        bounds |= {min(max(edge - shift, 0), size) for edge in (0, count)}
    segments = []
    for start, stop in itertools.pairwise(sorted(bounds)):
        parts = [
            lax.slice_in_dim(terms[..., i, :], start + shift, stop + shift, axis=axis)
            for i, shift in enumerate(shifts)
            if start + shift >= 0 and stop + shift <= count
        ]
        if parts:
            segments.append(functools.reduce(jnp.add, parts))
        else:
            shape = list(terms[..., 0, :].shape)
            shape[axis] = stop - start
            segments.append(jnp.zeros(shape, terms.dtype))
    return jnp.concatenate(segments, axis)
