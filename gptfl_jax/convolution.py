"""Convolution in the form that runs fast on the backend at hand.

`conv` is `jax.lax.conv_general_dilated` with the channels last. On GPU and TPU it is
exactly that, except on a GPU where networks of many clients stand side by side under
`vmap` (`side_by_side`): of kernels that differ by client JAX makes one convolution with
a group for each, which an H200 ran 2 to 6 times slower than "patches", one product for
each. On a CPU, XLA runs `lax.conv` inside `scan`, `fori_loop` or `while_loop`
15 to 20 times slower than outside (jax issue 12868), and local training is such a
loop; there it is written with shifted slices around matrix products. `choose` decides
among the forms, by the place and by the shapes. A place counts as inside a loop unless
the code that traces it says otherwise (`outside_loops`), as the generators do. Forms
inside a loop:

- "winograd": 3x3 and 5x5 windows without stride, F(4x4, 3x3) and F(4x4, 5x5) of Lavin
  and Gray (arXiv 1509.09308): 4 and 6.25 times fewer multiplications; along one axis
  only, 2 and 2.5 times.
- "row_split": any window without stride. The window is unfolded along the width only;
  one product gives the terms of every row of the window, which are summed afterwards.
  As many operations as the convolution has, half the memory traffic of "patches".
- "shifts": depthwise windows, with one output for each channel: the sum of shifted
  inputs, each times its weight, which XLA makes one loop of. A 3x3 on 32x32x32 with its
  gradient took a fifth of the time of "patches", MobileNetV2 an eighth, and a third of
  that of "lax" outside of loops.
- "patches": everything else (strides, groups, narrow inputs, one or three spatial axes,
  half precision): windows unfolded along all axes, then one product a group. Where
  another form was meant, the logger of this module says at level INFO why not.

And outside of loops, where networks are large and seldom differentiated:

- "winograd_strips": "winograd", a few rows of the outputs at a time, so that what is
  between inputs and outputs stays in the processor's cache and takes little memory; so
  does what goes before the convolution (`Before`) and is added after it. On one axis,
  dilated or not, F(4, 3) for windows of 3 and else F(4, 4) for each 4 of a window: half
  as many multiplications; of HiFi-GAN's layers that are computed so, 1.2 to 1.8 times
  the speed of "lax".
- "product": windows of single pixels, without any rearrangement.
- "patches", where the windows are fewer than the output channels.
- "lax": everything else.

Rounding, as the largest error over the largest value against float64, in float32 with
128 channels: 4e-7 (row_split), 2e-6 (3x3 winograd), 5e-6 (5x5 winograd), the same for
both gradients; 2e-6 on one axis. Where a precision above JAX's default is asked for,
"winograd" is not taken. Gradients, `vmap`, `jit`, loops and `shard_map` work with every
form, forward mode (`jax.jvp`) with "lax" only.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

Form = Literal[
    "lax", "patches", "product", "shifts", "row_split", "winograd", "winograd_strips"
]
Padding = str | int | Sequence[int | tuple[int, int]]

# Up to this many numbers a window, gathering whole windows moves less memory than
# row_split's sums over rows (measured on 3x3x3 and 5x5x1 against 5x5x32).
_NARROW_WINDOW = 64

# Outside of loops, from this many windows on winograd's transform of the weights costs
# less than the multiplications that it saves.
_MANY_WINDOWS = 1000

# Outside of loops, from so many numbers a window of one axis on winograd pays.
_LONG_WINDOW = 768

# What a strip of winograd's holds at least, in bytes; more where the weights, which are
# read for each strip, are more themselves.
_STRIP_BYTES = 16 * 2**20

_logger = logging.getLogger(__name__)

# Values that `jax.jit` keeps apart: a function is traced anew for each.
_asked_form = jax.make_user_context(None)
_is_outside = jax.make_user_context(False)
_is_side_by_side = jax.make_user_context(False)


@contextlib.contextmanager
def form(name: str) -> Iterator[None]:
    """Makes every `conv` traced inside the block use a form of `Form`, on any backend.

    For tests and measurements. A form that does not apply (all but "lax" and "patches"
    have conditions) gives way to "patches".

    Raises:
        ValueError: no such form.
    """
    if name not in get_args(Form):
        raise ValueError(f"form {name!r}: takes one of {', '.join(get_args(Form))}")
    with _asked_form(name):
        yield


@contextlib.contextmanager
def outside_loops() -> Iterator[None]:
    """Says that no loop of XLA's runs what is traced inside the block.

    In a loop on a CPU it would be 15 to 20 times slower than without this.
    """
    with _is_outside(True):
        yield


def in_parts() -> bool:
    """Whether what is traced here is quicker in parts that fit a processor's cache: on
    a CPU, outside of loops."""
    return _is_outside.value and jax.default_backend() == "cpu"


@contextlib.contextmanager
def side_by_side() -> Iterator[None]:
    """Says that `vmap` gives what is traced inside the block each client's kernels."""
    with _is_side_by_side(True):
        yield


class Geometry(NamedTuple):
    """Where the windows of a convolution lie; an entry for each spatial axis."""

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def out_sizes(self, sizes: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
        """Windows along each axis."""
        return tuple(
            max(0, (n + lo + hi - (k - 1) * d - 1) // s + 1)
            for n, (lo, hi), k, d, s in zip(
                sizes, self.padding, window, self.dilation, self.stride, strict=True
            )
        )


@runtime_checkable
class Before(Protocol):
    """What inputs go through before a convolution: element by element, once numbers of
    each example are known. A PyTree, by whose leaves a convolution is differentiated.
    """

    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        """All of it."""

    def numbers(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> PyTree[Float[Array, "batch ..."]]:
        """Those of each example, which broadcast with a part of it."""

    def part(
        self,
        inputs: Float[Array, "batch *part channels"],
        numbers: PyTree[Float[Array, "batch ..."]],
    ) -> Float[Array, "batch *part channels"]:
        """The same for some places of the examples that `numbers` belong to."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elementwise:
    """A `Before` that is a function of each element alone."""

    function: Callable[[Array], Array] = dataclasses.field(metadata={"static": True})

    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        """The function of all."""
        return self.function(inputs)

    def numbers(self, inputs: Float[Array, "batch *spatial channels"]) -> tuple[()]:
        """None are needed."""
        return ()

    def part(
        self, inputs: Float[Array, "batch *part channels"], numbers: tuple[()]
    ) -> Float[Array, "batch *part channels"]:
        """The function of some."""
        return self.function(inputs)


def conv(
    inputs: Float[Array, "batch *spatial in_channels"],
    kernel: Float[Array, "*window group_channels out_channels"],
    stride: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    precision: lax.PrecisionLike = None,
    bias: Float[Array, " out_channels"] | None = None,
    before: Before | None = None,
    plus: Float[Array, "#batch *#out_spatial out_channels"] | None = None,
) -> Float[Array, "batch *out_spatial out_channels"]:
    """Cross-correlates `inputs` with `kernel`, over any number of spatial axes.

    Args:
        inputs: examples with the channels last.
        kernel: one filter for each output channel, over `in_channels / groups`
            channels.
        stride: steps between windows, one for all axes or one an axis.
        padding: "SAME", "VALID", a width for all sides, a width an axis, or a pair
            (before, after) an axis.
        groups: the channels are split into this many groups, convolved apart.
        dilation: distance between the elements of a window.
        precision: of the matrix products, as in `jax.lax`.
        bias: is added to the outputs.
        before: what the inputs go through first.
        plus: is added to the outputs. What stands here or in `before` is, in strips,
            done while these are in the processor's cache.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    rank = inputs.ndim - 2
    if kernel.ndim != rank + 2:
        raise ValueError(
            f"kernel of shape {kernel.shape} does not fit inputs of shape "
            f"{inputs.shape}: it needs {rank} window axes and two of channels"
        )
    if inputs.shape[-1] != kernel.shape[-2] * groups or kernel.shape[-1] % groups:
        raise ValueError(
            f"kernel of shape {kernel.shape} with groups={groups} does not fit "
            f"{inputs.shape[-1]} input channels"
        )
    if inputs.dtype != kernel.dtype:
        raise ValueError(
            f"inputs are {inputs.dtype}, the kernel is {kernel.dtype}: cast one of them"
        )
    stride, dilation = each_axis(stride, rank), each_axis(dilation, rank)
    extent = [
        (k - 1) * d + 1 for k, d in zip(kernel.shape[:rank], dilation, strict=True)
    ]
    pads = padding_widths(padding, inputs.shape[1:-1], extent, stride)
    geometry = Geometry(stride, pads, dilation, groups)
    chosen = choose(inputs, kernel, geometry, precision)
    if chosen == "winograd_strips":
        operands = inputs, kernel, bias, before, plus
        return _traced_winograd_strips(*operands, geometry, precision)
    if before is not None:
        inputs = before(inputs)
    if chosen in _CPU_FORMS:
        outputs = _CPU_FORMS[chosen](inputs, kernel, geometry, precision)
    else:
        outputs = lax.conv_general_dilated(
            inputs,
            kernel,
            stride,
            pads,
            rhs_dilation=dilation,
            dimension_numbers=_channels_last(rank),
            feature_group_count=groups,
            precision=precision,
        )
    return _with(outputs, bias, plus)


def _with(outputs, bias, plus):
    if bias is not None:
        outputs = outputs + bias
    return outputs if plus is None else outputs + plus


def choose(
    inputs: Float[Array, "batch *spatial in_channels"],
    kernel: Float[Array, "*window group_channels out_channels"],
    geometry: Geometry,
    precision: lax.PrecisionLike = None,
) -> Form:
    """The form that `conv` takes: by backend, shapes, type and precision."""
    asked = _asked_form.value
    if asked is None:
        backend = jax.default_backend()
        if backend == "gpu" and _is_side_by_side.value:
            no_shifts = _shifts_obstacle(inputs, kernel, geometry)
            return "patches" if no_shifts else "shifts"
        if backend != "cpu":
            return "lax"
        if _is_outside.value:
            return _choose_outside(inputs, kernel, geometry, precision)
        if not _shifts_obstacle(inputs, kernel, geometry):
            return "shifts"
        if _winograd_pays(inputs, kernel, geometry, precision):
            return "winograd"
        asked = "row_split"
        if math.prod(kernel.shape[:-1]) <= _NARROW_WINDOW:
            asked = "patches"
    elif asked == "lax":
        return "lax"
    obstacle = ""
    if asked == "winograd":
        obstacle = _winograd_obstacle(inputs, kernel, geometry)
    elif asked == "winograd_strips":
        obstacle = _strips_obstacle(inputs, kernel, geometry)
    elif asked == "row_split":
        obstacle = _row_split_obstacle(inputs, kernel, geometry)
    elif asked == "shifts":
        obstacle = _shifts_obstacle(inputs, kernel, geometry)
    elif asked == "product":
        obstacle = _product_obstacle(inputs, kernel, geometry)
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
    if windows >= _MANY_WINDOWS and _strips_pay(inputs, kernel, geometry, precision):
        return "winograd_strips"
    if not _product_obstacle(inputs, kernel, geometry):
        return "product"
    # "lax" would rearrange the weights, which are more than what all windows see.
    return "patches" if windows <= features else "lax"


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


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    inputs = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(inputs, (rank + 1, rank, *range(rank)), inputs)


def _pad(x: Array, widths: dict[int, tuple[int, int]]) -> Array:
    """Zeros (or cuts, where negative) before and after the axes named."""
    if not any(lo or hi for lo, hi in widths.values()):
        return x
    config = [(*widths.get(axis, (0, 0)), 0) for axis in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _every(x: Array, axis: int, start: int, count: int, step: int) -> Array:
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


# --- patches --------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _patches(inputs, kernel, geometry, precision):
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
    d_inputs = _fold(d_columns, window, geometry, shape.sizes[1:-1])
    return d_inputs, d_flat.reshape(kernel_shape.sizes)


_patches.defvjp(_patches_forward, _patches_backward)


def _unfold(inputs, window, geometry):
    """[batch, *out, taps, channels]: what each window sees."""
    return jnp.stack(_views(inputs, window, geometry), -2)


def _views(inputs, window, geometry):
    """[batch, *out, channels] for each tap: what windows see at that place."""
    out = geometry.out_sizes(inputs.shape[1:-1], window)
    x = _pad(inputs, {axis + 1: pad for axis, pad in enumerate(geometry.padding)})
    views = []
    for tap in itertools.product(*map(range, window)):
        view = x
        for axis, (i, n) in enumerate(zip(tap, out, strict=True)):
            start = i * geometry.dilation[axis]
            view = _every(view, axis + 1, start, n, geometry.stride[axis])
        views.append(view)
    return views


def _fold(columns, window, geometry, sizes):
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


# --- product --------------------------------------------------------------------------


def _product_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    if math.prod(kernel.shape[:-2]) != 1:
        return f"window {kernel.shape[:-2]}"
    if set(geometry.stride) != {1}:
        return f"stride {geometry.stride}"
    return f"{geometry.groups} groups" if geometry.groups != 1 else ""


def _product(inputs, kernel, geometry, precision):
    x = _pad(inputs, {axis + 1: pad for axis, pad in enumerate(geometry.padding)})
    channels, features = kernel.shape[-2:]
    flat = kernel.reshape(channels, features)
    y = jnp.matmul(x.reshape(-1, channels), flat, precision=precision)
    return y.reshape(*x.shape[:-1], features)


# --- shifts ---------------------------------------------------------------------------


def _shifts_obstacle(inputs, kernel, geometry) -> str:
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
def _shifts(inputs, kernel, geometry, precision):
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


_shifts.defvjp(_shifts_forward, _shifts_backward)


# --- row_split ------------------------------------------------------------------------


def _row_split_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    if kernel.ndim != 4:
        return f"{kernel.ndim - 2} spatial axes"
    return _dense_obstacle(inputs, kernel, geometry)


def _dense_obstacle(inputs, kernel, geometry) -> str:
    """Why no form applies that makes outputs of all places at once."""
    if set(geometry.stride) != {1}:
        return f"stride {geometry.stride}"
    if geometry.groups != 1:
        return f"{geometry.groups} groups"
    if inputs.dtype not in (jnp.float32, jnp.float64):
        return str(inputs.dtype)
    if min(min(pair) for pair in geometry.padding) < 0:
        return f"padding {geometry.padding}"
    if 0 in geometry.out_sizes(inputs.shape[1:-1], kernel.shape[:-2]):
        return "inputs smaller than the window"
    return ""


# What the rows convolved at once may hold. Unfolded and with all terms, they then fit
# in a processor's cache (32x32x16: 0.23 in place of 0.31 ms of its time an example).
_BLOCK_BYTES = 2**19


def _row_split_in_blocks(inputs, kernel, geometry, precision):
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
    padded = _pad(inputs, {2: (left, right)})
    views = [_every(padded, 2, j * along, columns, 1) for j in range(window_columns)]
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
    padded = _pad(gradient, {1: (first, height - rows + top)})
    views = [
        _every(padded, 1, (window_rows - 1 - i) * down, height, 1)
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


# --- winograd -------------------------------------------------------------------------


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


def _axis_transform(window):
    """Of one axis of a window; a long one is taken in parts of 4, as a tile moves."""
    if window == 1:
        return _transform(1, 1)
    return _transform(4, window if window in _WINOGRAD_TILE else 4)


def _winograd_obstacle(inputs, kernel, geometry) -> str:
    """Why this form does not apply; empty if it does."""
    window = kernel.shape[:-2]
    if len(window) not in (1, 2):
        return f"{len(window)} spatial axes"
    obstacle = _dense_obstacle(inputs, kernel, geometry)
    if obstacle:
        return obstacle
    if len(set(window)) > 1 or window[0] not in _WINOGRAD_TILE:
        return f"window {window}"
    if set(geometry.dilation) != {1}:
        return f"dilation {geometry.dilation}"
    return ""


def _strips_obstacle(inputs, kernel, geometry) -> str:
    """The same for strips, which take dilated windows on one axis as well."""
    if kernel.ndim == 4:
        return _winograd_obstacle(inputs, kernel, geometry)
    if kernel.ndim != 3 or kernel.shape[0] < 3:
        return f"window {kernel.shape[:-2]}"
    return _dense_obstacle(inputs, kernel, geometry)


def _winograd_pays(inputs, kernel, geometry, precision) -> bool:
    if _winograd_obstacle(inputs, kernel, geometry) or not _default(precision):
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


def _strips_pay(inputs, kernel, geometry, precision) -> bool:
    if kernel.ndim != 3:
        return _winograd_pays(inputs, kernel, geometry, precision)
    # On one axis half of the multiplications are saved; with few of them, hardly time,
    # and a loop takes longer to compile, and more memory, than "lax".
    if _strips_obstacle(inputs, kernel, geometry) or not _default(precision):
        return False
    return kernel.shape[0] * min(kernel.shape[1:]) >= _LONG_WINDOW


def _default(precision) -> bool:
    """Whether products may be rounded as JAX does when nothing is asked for."""
    if precision is None:
        precision = jax.config.jax_default_matmul_precision
    if precision in (None, "default", "fastest"):
        return True
    return precision == lax.Precision.DEFAULT


def _winograd(inputs, kernel, geometry, precision):
    if inputs.ndim == 4:
        return _winograd_of_two(inputs, kernel, geometry, precision)
    operands = inputs[:, :, None], kernel[:, None], _of_two_axes(geometry)
    return _winograd_of_two(*operands, precision)[:, :, 0]


def _of_two_axes(geometry):
    """Where one axis is the height of two, whose width is 1."""
    return Geometry((1, 1), (*geometry.padding, (0, 0)), (*geometry.dilation, 1), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _winograd_of_two(inputs, kernel, geometry, precision):
    return _winograd_forward(inputs, kernel, geometry, precision)[0]


def _winograd_forward(inputs, kernel, geometry, precision):
    transforms = [_axis_transform(r) for r in kernel.shape[:2]]
    sizes = geometry.out_sizes(inputs.shape[1:3], kernel.shape[:2])
    x = _pad_to_tiles(inputs, geometry, transforms, sizes)
    weights = _winograd_weights(kernel, transforms)
    y, x = _winograd_products(x, weights, transforms, precision)
    shapes = Shape(inputs.shape), Shape(kernel.shape)
    return y[:, : sizes[0], : sizes[1]], (*shapes, x, weights)


def _tiles(sizes, transforms):
    """How many tiles cover outputs of these sizes."""
    return [-(-size // t.m) for size, t in zip(sizes, transforms, strict=True)]


def _pad_to_tiles(inputs, geometry, transforms, sizes):
    """Inputs padded such that whole tiles fit."""
    tiles = zip(_tiles(sizes, transforms), transforms, strict=True)
    ends = [count * t.m + t.r - 1 for count, t in tiles]
    return _pad(
        inputs,
        {
            axis + 1: (lo, ends[axis] - lo - inputs.shape[axis + 1])
            for axis, (lo, _) in enumerate(geometry.padding)
        },
    )


def _winograd_weights(kernel, transforms, factor=1):
    """[tile, channels, parts x features]; the rows of the window may be several times
    those of the transform, which takes them in parts."""
    down, along = transforms
    rows, columns, channels, features = kernel.shape
    parts = _parts(rows, down)
    kernel = _pad(kernel, {0: (0, parts * down.r - rows)})
    if parts > 1:
        kernel = kernel.reshape(parts, -1, channels, features)
        kernel = kernel.transpose(1, 2, 0, 3)
    both = np.kron(down.weight, along.weight).astype(kernel.dtype)
    weights = jnp.matmul(both * factor, kernel.reshape(both.shape[1], -1))
    return keep(weights.reshape(down.n * along.n, channels, parts * features))


def _parts(rows, transform):
    """Into how many windows of the transform a window of so many rows is split."""
    return -(-rows // transform.r)


def _winograd_products(x, weights, transforms, precision, parts=1):
    """Outputs of whole tiles of padded inputs, and these inputs transformed."""
    down, along = transforms
    batch, *ends, channels = x.shape
    tiles = [(end - t.r + 1) // t.m for end, t in zip(ends, transforms, strict=True)]
    products, features = down.n * along.n, weights.shape[-1] // parts
    # Width first, then height, and each transformed axis in front:
    # [column, batch, ...], [row, column, batch, ...].
    x = [_every(x, 2, j, tiles[1], along.m) for j in range(along.n)]
    x = keep(jnp.stack(_combine(along.input, x)))
    x = [_every(x, 2, i, tiles[0], down.m) for i in range(down.n)]
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
    down, along = transforms = [_axis_transform(r) for r in window]
    batch, *sizes = gradient.shape[:3]
    tiles, products = _tiles(sizes, transforms), down.n * along.n
    more = zip(tiles, transforms, sizes, strict=True)
    g = _pad(
        gradient, {a: (0, n * t.m - size) for a, (n, t, size) in enumerate(more, 1)}
    )
    g = [_every(g, 2, j, tiles[1], along.m) for j in range(along.m)]
    g = keep(jnp.stack(_combine(along.output, g)))
    g = [_every(g, 2, i, tiles[0], down.m) for i in range(down.m)]
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _winograd_strips(inputs, kernel, bias, before, plus, geometry, precision):
    if inputs.ndim == 4:
        return _strips_of_rows(inputs, kernel, bias, before, plus, geometry, precision)
    geometry = _of_two_axes(geometry)
    plus = None if plus is None else plus[:, :, None]
    operands = inputs[:, :, None], kernel[:, None], bias, before, plus
    return _strips_of_rows(*operands, geometry, precision)[:, :, 0]


def _strips_forward(inputs, kernel, bias, before, plus, geometry, precision):
    winograd = not _winograd_obstacle(inputs, kernel, geometry)

    def plainly(inputs, kernel, bias, before, plus):
        if before is not None:
            inputs = before(inputs)
        form = _winograd if winograd else _patches
        return _with(form(inputs, kernel, geometry, precision), bias, plus)

    return jax.vjp(plainly, inputs, kernel, bias, before, plus)


def _strips_backward(geometry, precision, pull, gradient):
    return pull(gradient)


_winograd_strips.defvjp(_strips_forward, _strips_backward)


def _strips_of_rows(inputs, kernel, bias, before, plus, geometry, precision):
    down, along = transforms = [_axis_transform(r) for r in kernel.shape[:2]]
    parts = _parts(kernel.shape[0], down)
    batch, height, width, channels = inputs.shape
    features = kernel.shape[-1]
    sizes = geometry.out_sizes((height, width), kernel.shape[:2])
    # Rows that a dilated window sees are `apart`; those between stand beside them.
    apart = geometry.dilation[0]
    step = down.m * apart
    tiles = [-(-sizes[0] // step), -(-sizes[1] // along.m)]
    products, itemsize = down.n * along.n, inputs.dtype.itemsize
    row = products * tiles[1] * apart * (channels + parts * features) * itemsize
    weight_bytes = products * channels * parts * features * itemsize
    at_once = max(_STRIP_BYTES, weight_bytes) // row
    examples, rows = _strips(batch, tiles[0], at_once)
    # Always 0, but known only with the inputs: XLA would transform the weights of a
    # whole network at its start, and hold four times their memory to its end; and make
    # room for the outputs of all layers.
    zero = jnp.where(inputs[0, 0, 0, 0] > jnp.inf, 1, 0).astype(kernel.dtype)
    weights = _winograd_weights(kernel, transforms, 1 - zero)
    strips = -(-tiles[0] // rows)
    made = min(rows * step, sizes[0])
    (top, _), (left, _) = geometry.padding
    tall = ((rows + parts - 1) * down.m + down.r - 1) * apart
    read = min(tall, height)
    # Each strip is padded by itself: a padded copy of the inputs would be large.
    below = max(0, sizes[0] - made + tall - top - height)
    wide = tiles[1] * along.m + along.r - 1
    edges = {1: (top, below), 2: (left, wide - left - width)}
    numbers = None if before is None else before.numbers(inputs)

    def strip(number):
        """Some rows of outputs, and where they begin."""
        example, place = lax.div(number, strips), lax.rem(number, strips)
        # The last strip of an example begins where whole tiles end with it.
        first = jnp.minimum(place * (rows * step), sizes[0] - made)
        start = first - top
        inside = jnp.clip(start, 0, height - read)
        begin = (example * examples, inside, 0, 0)
        part = lax.dynamic_slice(inputs, begin, (examples, read, width, channels))
        if before is not None:
            part = before.part(
                part, jax.tree.map(functools.partial(of, begin), numbers)
            )
        part = _pad(part, edges)
        part = lax.dynamic_slice_in_dim(part, start - inside + top, tall, 1)
        part = part.reshape(examples, tall // apart, apart * wide, channels)
        y = _winograd_products(part, weights, transforms, precision, parts)[0]
        y = y.reshape(examples, rows * step, -1, features)[:, :made, : sizes[1]]
        return _with(y, bias, None), place, (example * examples, first, 0, 0)

    def of(begin, array):
        """What `array` holds for a strip that begins there."""
        sizes = examples, made, *array.shape[2:]
        sizes = [min(size, most) for size, most in zip(array.shape, sizes, strict=True)]
        whole = [size == most for size, most in zip(array.shape, sizes, strict=True)]
        begin = [0 if w else b for w, b in zip(whole, begin, strict=True)]
        return lax.dynamic_slice(array, begin, sizes)

    def add(number, outputs):
        """Adds a strip in the place of what it is added to."""
        y, place, begin = strip(number)
        there = lax.dynamic_slice(outputs, begin, y.shape)
        if strips * rows * step > sizes[0] > made:
            row = jnp.arange(made)[:, None, None]
            y = jnp.where(row + begin[1] < place * (rows * step), 0, y)
        return lax.dynamic_update_slice(outputs, there + y, begin)

    def write(number, outputs):
        y, _, begin = strip(number)
        return lax.dynamic_update_slice(
            outputs, y if plus is None else y + of(begin, plus), begin
        )

    shape = batch, *sizes, features
    count = batch // examples * strips
    if count == 1:
        return _with(strip(jnp.arange(1)[0])[0], None, plus)
    if plus is not None and plus.shape == shape:
        return lax.fori_loop(0, count, add, plus)
    return lax.fori_loop(0, count, write, jnp.broadcast_to(zero, shape))


def _strips(batch, rows, at_once):
    """Examples and rows of tiles of a strip: whole examples, or rows of one.

    Examples are split evenly, as the last strip cannot be smaller than the others; rows
    are padded.
    """
    examples = at_once // rows
    if examples:
        return next(
            n for n in range(min(examples, batch), 0, -1) if batch % n == 0
        ), rows
    count = -(-rows // max(1, at_once))
    return 1, -(-rows // count)


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
            _pad(part, {axis: (s, reach - 1 - s)})
            for s, part in enumerate(parts[phase::m])
        ]
        phases.append(functools.reduce(jnp.add, shifted))
    y = jnp.stack(phases, axis + 1)
    y = y.reshape(*y.shape[:axis], -1, *y.shape[axis + 2 :])
    missing = max(0, start + size - y.shape[axis])  # Inputs that no window reads.
    y = _pad(y, {axis: (0, missing)})
    return lax.slice_in_dim(y, start, start + size, axis=axis)


# Under `jit`, layers of one shape share what one of them has traced.
_CPU_FORMS = {
    "patches": jax.jit(_patches, static_argnums=(2, 3)),
    "product": jax.jit(_product, static_argnums=(2, 3)),
    "shifts": jax.jit(_shifts, static_argnums=(2, 3)),
    "row_split": jax.jit(_row_split_in_blocks, static_argnums=(2, 3)),
    "winograd": jax.jit(_winograd, static_argnums=(2, 3)),
}
_traced_winograd_strips = jax.jit(_winograd_strips, static_argnums=(5, 6))
