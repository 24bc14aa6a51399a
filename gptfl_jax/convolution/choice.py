"""Which form a convolution takes."""

import logging
import math

import jax
from jax import lax
from jaxtyping import Array, Float

from gptfl_jax.convolution.direct import direct_obstacle, direct_pays
from gptfl_jax.convolution.geometry import Geometry
from gptfl_jax.convolution.places import (
    Form,
    asked_form,
    is_outside,
    is_side_by_side,
)
from gptfl_jax.convolution.row_split import row_split_obstacle
from gptfl_jax.convolution.strips import strips_obstacle, strips_pay
from gptfl_jax.convolution.unfolded import product_obstacle, shifts_obstacle
from gptfl_jax.convolution.winograd import winograd_obstacle, winograd_pays

# Up to this many numbers a window, gathering whole windows moves less memory than
# row_split's sums over rows (measured on 3x3x3 and 5x5x1 against 5x5x32).
_NARROW_WINDOW = 64

# Outside of loops, from this many windows on winograd's transform of the weights costs
# less than the multiplications that it saves.
_MANY_WINDOWS = 1000

# What says why a form does not apply.
_OBSTACLES = {
    "direct": direct_obstacle,
    "product": product_obstacle,
    "row_split": row_split_obstacle,
    "shifts": shifts_obstacle,
    "winograd": winograd_obstacle,
    "winograd_strips": strips_obstacle,
}

_logger = logging.getLogger(__name__)


def choose(
    inputs: Float[Array, "batch *spatial in_channels"],
    kernel: Float[Array, "*window group_channels out_channels"],
    geometry: Geometry,
    precision: lax.PrecisionLike = None,
) -> Form:
    """The form that `conv` takes: by backend, shapes, type and precision."""
    asked = asked_form.value
    if asked is None:
        backend = jax.default_backend()
        if backend == "gpu" and is_side_by_side.value:
            no_shifts = shifts_obstacle(inputs, kernel, geometry)
            return "patches" if no_shifts else "shifts"
        if backend != "cpu":
            return "lax"
        if is_outside.value:
            return _choose_outside(inputs, kernel, geometry, precision)
        if not shifts_obstacle(inputs, kernel, geometry):
            return "shifts"
        if winograd_pays(inputs, kernel, geometry, precision):
            return "winograd"
        # Of kernels of many clients JAX would make one with a group for each.
        if not is_side_by_side.value and direct_pays(inputs, kernel, geometry):
            return "direct"
        asked = "row_split"
        if math.prod(kernel.shape[:-1]) <= _NARROW_WINDOW:
            asked = "patches"
    elif asked == "lax":
        return "lax"
    find = _OBSTACLES.get(asked)  # None: "patches", which takes everything.
    obstacle = find(inputs, kernel, geometry) if find else ""
    if not obstacle:
        return asked
    _logger.info(
        "inputs %s, kernel %s: patches in place of %s, which takes no %s",
        inputs.shape,
        kernel.shape,
        asked,
        obstacle,
    )
    return "patches"


def _choose_outside(inputs, kernel, geometry, precision) -> Form:
    """The form for a CPU outside of loops."""
    *window, _, features = kernel.shape
    out = geometry.out_sizes(inputs.shape[1:-1], window)
    windows = inputs.shape[0] * math.prod(out)
    if geometry.groups != 1:
        return "lax"
    if windows >= _MANY_WINDOWS and strips_pay(inputs, kernel, geometry, precision):
        return "winograd_strips"
    if not product_obstacle(inputs, kernel, geometry):
        return "product"
    # "lax" would rearrange the weights, which are more than what all windows see.
    return "patches" if windows <= features else "lax"
