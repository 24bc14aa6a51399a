"""The forms "patches", "product" and "shifts": windows unfolded along all axes."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gptfl_jax.convolution.geometry import Shape, every, keep, pad


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def patches(inputs, kernel, geometry, precision):
    """Windows unfolded along all axes, then one product a group."""
    return _patches_forward(inputs, kernel, geometry, precision)[0]


def _patches_forward(inputs, kernel, geometry, precision):
    columns = keep(_unfold(inputs, kernel.shape[:-2], geometry))
    rows, (taps, channels) = columns.shape[:-2], columns.shape[-2:]
    features, groups = kernel.shape[-1], geometry.groups
    if groups == 1:
        columns = columns.reshape(math.prod(rows), taps * channels)
        flat = kernel.reshape(taps * channels, features)
        outputs = jnp.matmul(columns, flat, precision=precision)
    elif kernel.shape[-2] == 1:
        # One input channel a group: nothing to contract but the taps.
        columns = columns.reshape(math.prod(rows), taps, channels, 1)
        flat = kernel.reshape(taps, channels, features // groups)
        outputs = jnp.sum(columns * flat, 1)
    else:
        columns = columns.reshape(math.prod(rows), taps, groups, channels // groups)
        flat = kernel.reshape(taps, channels // groups, groups, features // groups)
        outputs = jnp.einsum("rtgc,tcgo->rgo", columns, flat, precision=precision)
    shapes = Shape(inputs.shape), Shape(kernel.shape)
    return outputs.reshape(*rows, features), (*shapes, columns, flat)


def _patches_backward(geometry, precision, residuals, gradient):
    shape, kernel_shape, columns, flat = residuals
    *window, channels, features = kernel_shape.sizes
    groups, rows = geometry.groups, gradient.shape[:-1]
    if groups == 1:
        gradient = gradient.reshape(-1, features)
        d_flat = jnp.matmul(columns.T, gradient, precision=precision)
        d_columns = jnp.matmul(gradient, flat.T, precision=precision)
    elif channels == 1:
        gradient = gradient.reshape(-1, 1, groups, features // groups)
        d_flat = jnp.sum(columns * gradient, 0)
        d_columns = jnp.sum(gradient * flat, -1)
    else:
        gradient = gradient.reshape(-1, groups, features // groups)
        d_flat = jnp.einsum("rtgc,rgo->tcgo", columns, gradient, precision=precision)
        d_columns = jnp.einsum("rgo,tcgo->rtgc", gradient, flat, precision=precision)
    d_columns = d_columns.reshape(*rows, math.prod(window), shape.sizes[-1])
    d_inputs = fold(d_columns, window, geometry, shape.sizes[1:-1])
    return d_inputs, d_flat.reshape(kernel_shape.sizes)


patches.defvjp(_patches_forward, _patches_backward)


def _unfold(inputs, window, geometry):
    """[batch, *out, taps, channels]: what each window sees."""
    return jnp.stack(_views(inputs, window, geometry), -2)


def _views(inputs, window, geometry):
    """[batch, *out, channels] for each tap: what windows see at that place."""
    out = geometry.out_sizes(inputs.shape[1:-1], window)
    x = pad(inputs, {axis + 1: pad for axis, pad in enumerate(geometry.padding)})
    views = []
    for tap in itertools.product(*map(range, window)):
        view = x
        for axis, (i, n) in enumerate(zip(tap, out, strict=True)):
            start = i * geometry.dilation[axis]
            view = every(view, axis + 1, start, n, geometry.stride[axis])
        views.append(view)
    return views


def fold(columns, window, geometry, sizes):
    """Transpose of `_unfold`: every position sums over the windows that saw it."""
    seen = [columns[..., t, :] for t in range(columns.shape[-2])]
    return _overlaid(seen, window, geometry, sizes)


def _overlaid(seen, window, geometry, sizes):
    """Transpose of `_views`."""
    out = seen[0].shape[1:-1]
    parts = []
    for t, tap in enumerate(itertools.product(*map(range, window))):
        config = [(0, 0, 0)]
        for axis, (i, n) in enumerate(zip(tap, out, strict=True)):
            step = geometry.stride[axis]
            first = i * geometry.dilation[axis] - geometry.padding[axis][0]
            extent = max(0, (n - 1) * step + 1)
            config.append((first, sizes[axis] - first - extent, step - 1))
        zero = jnp.zeros((), seen[t].dtype)
        parts.append(lax.pad(seen[t], zero, [*config, (0, 0, 0)]))
    return functools.reduce(jnp.add, parts)


def product_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    if math.prod(kernel.shape[:-2]) != 1:
        return f"window {kernel.shape[:-2]}"
    if set(geometry.stride) != {1}:
        return f"stride {geometry.stride}"
    return f"{geometry.groups} groups" if geometry.groups != 1 else ""


def product(inputs, kernel, geometry, precision):
    """Windows of single pixels, without any rearrangement."""
    x = pad(inputs, {axis + 1: pad for axis, pad in enumerate(geometry.padding)})
    channels, features = kernel.shape[-2:]
    flat = kernel.reshape(channels, features)
    y = jnp.matmul(x.reshape(-1, channels), flat, precision=precision)
    return y.reshape(*x.shape[:-1], features)


def shifts_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    channels = inputs.shape[-1]
    if not geometry.groups == channels == kernel.shape[-1] > 1:
        return (
            f"{geometry.groups} groups of {channels} channels for "
            f"{kernel.shape[-1]} outputs"
        )
    if inputs.dtype not in (jnp.float32, jnp.float64):
        return str(inputs.dtype)  # whose sums would be as narrow
    return ""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifts(inputs, kernel, geometry, precision):
    """Depthwise windows: the sum of shifted inputs, each times its weight."""
    return _shifts_forward(inputs, kernel, geometry, precision)[0]


def _shifts_forward(inputs, kernel, geometry, precision):
    inputs = keep(inputs)
    views = _views(inputs, kernel.shape[:-2], geometry)
    taps = kernel.reshape(len(views), -1)
    outputs = functools.reduce(
        jnp.add, [view * tap for view, tap in zip(views, taps, strict=True)]
    )
    return outputs, (inputs, kernel)


def _shifts_backward(geometry, precision, residuals, gradient):
    inputs, kernel = residuals
    gradient = keep(gradient)
    window = kernel.shape[:-2]
    views = _views(inputs, window, geometry)
    axes = tuple(range(gradient.ndim - 1))
    d_kernel = jnp.stack([jnp.sum(view * gradient, axes) for view in views])
    seen = [gradient * tap for tap in kernel.reshape(len(views), -1)]
    d_inputs = _overlaid(seen, window, geometry, inputs.shape[1:-1])
    return d_inputs, d_kernel.reshape(kernel.shape)


shifts.defvjp(_shifts_forward, _shifts_backward)
