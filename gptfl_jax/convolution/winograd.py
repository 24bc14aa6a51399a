"""The form "winograd", of Lavin and Gray (arXiv 1509.09308), with its gradient."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gptfl_jax.convolution.geometry import (
    Geometry,
    Shape,
    dense_obstacle,
    every,
    keep,
    pad,
)


class _Transform(NamedTuple):
    """F(m, r): m outputs of r taps from n = m + r - 1 products, along one axis.

    outputs = output.T @ ((weight @ taps) * (input @ values)).
    """

    m: int
    r: int
    input: np.ndarray
    """[n, n]"""
    weight: np.ndarray
    """[n, r]"""
    output: np.ndarray
    """[n, m]"""

    @property
    def n(self) -> int:
        """Products a tile, and values that a tile reads."""
        return self.m + self.r - 1


# Of the products of a tile, by their number; infinity besides.
_POINTS = {
    1: (),
    6: (0, 2 / 3, -2 / 3, 3 / 2, -3 / 2),
    7: (0, 0.5, -0.5, 2, -2, 1),
    8: (0, 1, -1, 0.5, -0.5, 2, -2),
}


@functools.cache
def _transform(m: int, r: int) -> _Transform:
    """Toom and Cook's construction on the points 0, +-a, +-1 / a (, +-1) and infinity.

    Points in pairs about 0 make half of the input transform vanish; in pairs about 1
    they keep its numbers small. Of the values of a tried, these gave the smallest
    errors, less than a third of those of the usual 0, +-1, +-2 for F(4, 3).
    """
    points = _POINTS[m + r - 1]

    def powers(count):
        finite = [[p**j for j in range(count)] for p in points]
        return np.array([*finite, [0] * (count - 1) + [1]], float)

    # Any factor may move between the input's and the weights' rows. This one makes the
    # coefficients of the input those of the polynomials prod_q (x - q).
    factors = [math.prod(p - q for q in points if q != p) for p in points] + [1.0]
    factors = np.array(factors)[:, None]
    inverse = np.linalg.inv(powers(m + r - 1)).T * factors
    inverse[np.abs(inverse) < 1e-12] = 0
    return _Transform(m, r, inverse, powers(r) / factors, powers(m))


_WINOGRAD_TILE = {3: 4, 5: 4}  # Outputs a tile, by window.


def axis_transform(window):
    """Of one axis of a window; a long one is taken in parts of 4, as a tile moves."""
    if window == 1:
        return _transform(1, 1)
    return _transform(4, window if window in _WINOGRAD_TILE else 4)


def winograd_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    window = kernel.shape[:-2]
    if len(window) not in (1, 2):
        return f"{len(window)} spatial axes"
    obstacle = dense_obstacle(inputs, kernel, geometry)
    if obstacle:
        return obstacle
    if len(set(window)) > 1 or window[0] not in _WINOGRAD_TILE:
        return f"window {window}"
    if set(geometry.dilation) != {1}:
        return f"dilation {geometry.dilation}"
    return ""


def winograd_pays(inputs, kernel, geometry, precision) -> bool:
    """Whether it applies, and is faster than the forms without a transform."""
    if winograd_obstacle(inputs, kernel, geometry) or not rounds_as_usual(precision):
        return False
    # With fewer channels, the transforms cost what they save, and 5 times as long to
    # compile.
    *window, channels, features = kernel.shape
    if min(channels, features) < 32:
        return False
    r = window[0]
    m = _WINOGRAD_TILE[r]
    sizes = geometry.out_sizes(inputs.shape[1:-1], window)
    products = math.prod(-(-size // m) * (m + r - 1) for size in sizes)
    return products <= 0.6 * math.prod(size * r for size in sizes)


def rounds_as_usual(precision) -> bool:
    """Whether products may be rounded as JAX does when nothing is asked for."""
    if precision is None:
        precision = jax.config.jax_default_matmul_precision
    if precision in (None, "default", "fastest"):
        return True
    return precision == lax.Precision.DEFAULT


def winograd(inputs, kernel, geometry, precision):
    """The form, on one axis or two."""
    if inputs.ndim == 4:
        return _winograd_of_two(inputs, kernel, geometry, precision)
    operands = inputs[:, :, None], kernel[:, None], of_two_axes(geometry)
    return _winograd_of_two(*operands, precision)[:, :, 0]


def of_two_axes(geometry):
    """Where one axis is the height of two, whose width is 1."""
    return Geometry((1, 1), (*geometry.padding, (0, 0)), (*geometry.dilation, 1), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _winograd_of_two(inputs, kernel, geometry, precision):
    return _winograd_forward(inputs, kernel, geometry, precision)[0]


def _winograd_forward(inputs, kernel, geometry, precision):
    transforms = [axis_transform(r) for r in kernel.shape[:2]]
    sizes = geometry.out_sizes(inputs.shape[1:3], kernel.shape[:2])
    x = _pad_to_tiles(inputs, geometry, transforms, sizes)
    weights = winograd_weights(kernel, transforms)
    y, x = winograd_products(x, weights, transforms, precision)
    shapes = Shape(inputs.shape), Shape(kernel.shape)
    return y[:, : sizes[0], : sizes[1]], (*shapes, x, weights)


def _tiles(sizes, transforms):
    """How many tiles cover outputs of these sizes."""
    return [-(-size // t.m) for size, t in zip(sizes, transforms, strict=True)]


def _pad_to_tiles(inputs, geometry, transforms, sizes):
    """Inputs padded such that whole tiles fit."""
    tiles = zip(_tiles(sizes, transforms), transforms, strict=True)
    ends = [count * t.m + t.r - 1 for count, t in tiles]
    return pad(
        inputs,
        {
            axis + 1: (lo, ends[axis] - lo - inputs.shape[axis + 1])
            for axis, (lo, _) in enumerate(geometry.padding)
        },
    )


def winograd_weights(kernel, transforms, factor=1):
    """[tile, channels, parts x features]; the rows of the window may be several times
    those of the transform, which takes them in parts."""
    down, along = transforms
    rows, columns, channels, features = kernel.shape
    parts = parts_of_window(rows, down)
    kernel = pad(kernel, {0: (0, parts * down.r - rows)})
    if parts > 1:
        kernel = kernel.reshape(parts, -1, channels, features)
        kernel = kernel.transpose(1, 2, 0, 3)
    both = np.kron(down.weight, along.weight).astype(kernel.dtype)
    weights = jnp.matmul(both * factor, kernel.reshape(both.shape[1], -1))
    return keep(weights.reshape(down.n * along.n, channels, parts * features))


def parts_of_window(rows, transform):
    """Into how many windows of the transform a window of so many rows is split."""
    return -(-rows // transform.r)


def winograd_products(x, weights, transforms, precision, parts=1):
    """Outputs of whole tiles of padded inputs, and these inputs transformed."""
    down, along = transforms
    batch, *ends, channels = x.shape
    tiles = [(end - t.r + 1) // t.m for end, t in zip(ends, transforms, strict=True)]
    products, features = down.n * along.n, weights.shape[-1] // parts
    # Width first, then height, and each transformed axis in front:
    # [column, batch, ...], [row, column, batch, ...].
    x = [every(x, 2, j, tiles[1], along.m) for j in range(along.n)]
    x = keep(jnp.stack(_combine(along.input, x)))
    x = [every(x, 2, i, tiles[0], down.m) for i in range(down.n)]
    x = keep(jnp.stack(_combine(down.input, x)).reshape(products, -1, channels))
    y = keep(jnp.matmul(x, weights, precision=precision))
    y = y.reshape(down.n, along.n, batch, *tiles, parts * features)
    if parts > 1:
        tiles[0] -= parts - 1
        split = jnp.split(y, parts, -1)
        y = [lax.slice_in_dim(p, i, i + tiles[0], axis=3) for i, p in enumerate(split)]
        y = functools.reduce(jnp.add, y)
    y = jnp.stack(_combine(down.output.T, y), 3)
    y = keep(y.reshape(along.n, batch, tiles[0] * down.m, tiles[1], features))
    y = jnp.stack(_combine(along.output.T, y), 3)
    return y.reshape(batch, tiles[0] * down.m, tiles[1] * along.m, features), x


def _winograd_backward(geometry, precision, residuals, gradient):
    shape, kernel_shape, x, weights = residuals
    *window, channels, features = kernel_shape.sizes
    down, along = transforms = [axis_transform(r) for r in window]
    batch, *sizes = gradient.shape[:3]
    tiles, products = _tiles(sizes, transforms), down.n * along.n
    more = zip(tiles, transforms, sizes, strict=True)
    g = pad(
        gradient, {a: (0, n * t.m - size) for a, (n, t, size) in enumerate(more, 1)}
    )
    g = [every(g, 2, j, tiles[1], along.m) for j in range(along.m)]
    g = keep(jnp.stack(_combine(along.output, g)))
    g = [every(g, 2, i, tiles[0], down.m) for i in range(down.m)]
    g = keep(jnp.stack(_combine(down.output, g)).reshape(products, -1, features))
    d_weights = jnp.matmul(x.mT, g, precision=precision)
    both = np.kron(down.weight, along.weight).T
    d_kernel = jnp.matmul(both.astype(x.dtype), d_weights.reshape(products, -1))
    dx = keep(jnp.matmul(g, weights.mT, precision=precision))
    dx = dx.reshape(down.n, along.n, batch, *tiles, channels)
    (top, _), (left, _) = geometry.padding
    dx = _combine(down.input.T, dx)
    dx = keep(_overlap_add(dx, 2, down.m, top, shape.sizes[1]))
    dx = _combine(along.input.T, dx)
    d_inputs = _overlap_add(dx, 2, along.m, left, shape.sizes[2])
    return d_inputs, d_kernel.reshape(kernel_shape.sizes)


_winograd_of_two.defvjp(_winograd_forward, _winograd_backward)


def _combine(matrix, parts):
    """The matrix applied to a list of equally shaped arrays."""
    return [
        functools.reduce(
            jnp.add,
            [
                part if factor == 1 else part * factor
                for factor, part in zip(row.tolist(), parts, strict=True)
                if factor
            ],
        )
        for row in matrix
    ]


def _overlap_add(parts, axis, m, start, size):
    """out[p] = sum of parts[j][t] with t * m + j = p + start: tiles laid over another.

    Transpose of reading tiles of len(parts) values, m apart, from a padded axis.
    """
    reach = -(-len(parts) // m)
    phases = []
    for phase in range(m):
        shifted = [
            pad(part, {axis: (s, reach - 1 - s)})
            for s, part in enumerate(parts[phase::m])
        ]
        phases.append(functools.reduce(jnp.add, shifted))
    y = jnp.stack(phases, axis + 1)
    y = y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])
    missing = max(0, start + size - y.shape[axis])  # Inputs that no window reads.
    y = pad(y, {axis: (0, missing)})
    return lax.slice_in_dim(y, start, start + size, axis=axis)
