"""The form "direct": XLA's own convolution, with gradients of our own.

In a loop on a CPU, XLA runs the gradients that JAX derives from a convolution 3 to 70
times slower than outside: it does not turn their axes there to what its library takes.
A convolution with the channels last is not slowed down, and here all of them are.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gptfl_jax.convolution.geometry import (
    Geometry,
    every,
    extents,
    keep,
    plain_obstacle,
)
from gptfl_jax.convolution.unfolded import fold


def direct_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    if kernel.ndim != 4:
        return f"{kernel.ndim - 2} spatial axes"
    seen = extents(kernel.shape[:2], geometry.dilation)
    for pair, extent in zip(geometry.padding, seen, strict=True):
        if max(pair) >= extent:
            return f"padding {geometry.padding}"
    return plain_obstacle(inputs, kernel, geometry)


def direct_pays(inputs, kernel, geometry) -> bool:
    """Whether it applies, and is faster than unfolding what windows see.

    It is for first layers: measured forward with the kernel's gradient, on 1 and 3
    channels of 28 to 224 pixels to 6 to 128 outputs.
    """
    *window, channels, features = kernel.shape
    taps = math.prod(window)
    if channels > 4 or taps == 1 or inputs.dtype != jnp.float32:
        return False
    if direct_obstacle(inputs, kernel, geometry):
        return False
    # XLA's library takes outputs of one channel by 32s and of more by 64s, all else
    # goes to a slower one; and turning the gradients of many outputs costs more.
    in_whole = features % (32 if channels == 1 else 64) == 0
    if in_whole and features <= 64:
        return True
    return taps >= 49 or (taps >= 25 and features >= 32)


def xla_convolution(inputs, kernel, geometry, precision):
    """`lax.conv_general_dilated`, with the channels last, on any number of axes."""
    rank = inputs.ndim - 2
    last = (0, rank + 1, *range(1, rank + 1))
    stride, padding, dilation, groups = geometry
    return lax.conv_general_dilated(
        inputs,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            last, (rank + 1, rank, *range(rank)), last
        ),
        feature_group_count=groups,
        precision=precision,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def direct(inputs, kernel, geometry, precision):
    """One convolution forward, and one for each gradient, all of them channels last."""
    return _direct_forward(inputs, kernel, geometry, precision)[0]


def _direct_forward(inputs, kernel, geometry, precision):
    inputs = keep(inputs)
    return xla_convolution(inputs, kernel, geometry, precision), (inputs, kernel)


def _direct_backward(geometry, precision, residuals, gradient):
    inputs, kernel = residuals
    gradient = keep(gradient)
    d_inputs = _gradient_of_inputs(inputs.shape, kernel, geometry, precision, gradient)
    d_kernel = _gradient_of_kernel(inputs, kernel.shape, geometry, precision, gradient)
    return d_inputs, d_kernel


def _gradient_of_inputs(shape, kernel, geometry, precision, gradient):
    *window, channels, features = kernel.shape
    if set(geometry.stride) != {1}:
        # Zeros between the gradients would be most of what is multiplied.
        flat = kernel.reshape(-1, features)
        columns = jnp.matmul(gradient, flat.T, precision=precision)
        columns = columns.reshape(*columns.shape[:-1], -1, channels)
        return fold(columns, window, geometry, shape[1:-1])
    seen = extents(window, geometry.dilation)
    padding = [
        (extent - 1 - lo, extent - 1 - hi)
        for extent, (lo, hi) in zip(seen, geometry.padding, strict=True)
    ]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    back = geometry._replace(padding=padding)
    return xla_convolution(gradient, turned, back, precision)


def _gradient_of_kernel(inputs, kernel_shape, geometry, precision, gradient):
    """Inputs as examples' worth of channels, slid over by the gradients of outputs.

    What is summed over, the examples, is the last axis of the one and the axis before
    of the other.
    """
    padding = []
    for axis, extent in enumerate(extents(kernel_shape[:2], geometry.dilation), 1):
        lo = geometry.padding[axis - 1][0]
        reach = (gradient.shape[axis] - 1) * geometry.stride[axis - 1] + extent
        seen = min(inputs.shape[axis], reach - lo)  # What no window sees is cut off.
        inputs = every(inputs, axis, 0, seen, 1)
        padding.append((lo, reach - lo - seen))
    d_kernel = xla_convolution(
        inputs.transpose(3, 1, 2, 0),
        gradient.transpose(1, 2, 0, 3),
        Geometry(geometry.dilation, padding, geometry.stride, 1),
        precision,
    )
    return d_kernel.transpose(1, 2, 0, 3)


direct.defvjp(_direct_forward, _direct_backward)
