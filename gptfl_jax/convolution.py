"""Convolution in the form that runs fast on the backend at hand.

`conv` is `jax.lax.conv_general_dilated` with the channels last. On GPU and TPU it is
exactly that. On a CPU, XLA runs `lax.conv` inside `scan`, `fori_loop` or `while_loop`
15 to 20 times slower than outside (jax issue 12868), and local training is such a
loop; there it is written as shifted slices and matrix products.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Form = Literal["lax", "patches"]
Padding = str | int | Sequence[int | tuple[int, int]]

_form: contextvars.ContextVar[Form | None] = contextvars.ContextVar(
    "convolution_form", default=None
)


@contextlib.contextmanager
def form(name: Form) -> Iterator[None]:
    """Makes every `conv` traced inside the block use one form, whatever the backend.

    For tests and measurements. It acts while a function is traced: a function that was
    compiled before keeps the form it was compiled with.
    """
    token = _form.set(name)
    try:
        yield
    finally:
        _form.reset(token)


def conv(
    inputs: Float[Array, "batch *spatial in_channels"],
    kernel: Float[Array, "*window group_channels out_channels"],
    stride: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "batch *out_spatial out_channels"]:
    """Cross-correlates `inputs` with `kernel`, over any number of spatial axes.

    Args:
      inputs: examples with the channels last.
      kernel: one filter for each output channel, over `in_channels / groups` channels.
      stride: steps between windows, one for all axes or one an axis.
      padding: "SAME", "VALID", a width for all sides, a width an axis, or a pair
        (before, after) an axis.
      groups: the channels are split into this many groups, convolved apart.
      dilation: distance between the elements of a window.
      precision: of the matrix products, as in `jax.lax`.

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
    stride, dilation = each_axis(stride, rank), each_axis(dilation, rank)
    extent = [
        (k - 1) * d + 1 for k, d in zip(kernel.shape[:rank], dilation, strict=True)
    ]
    pads = padding_widths(padding, inputs.shape[1:-1], extent, stride)
    chosen = _form.get()
    if chosen is None:
        chosen = "patches" if jax.default_backend() == "cpu" and rank <= 2 else "lax"
    if chosen == "lax":
        return lax.conv_general_dilated(
            inputs,
            kernel,
            stride,
            pads,
            rhs_dilation=dilation,
            dimension_numbers=_channels_last(rank),
            feature_group_count=groups,
            precision=precision,
        )
    return _patches(inputs, kernel, stride, pads, groups, dilation, precision)


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
) -> list[tuple[int, int]]:
    """Padding in any accepted form as a pair (before, after) for every axis."""
    if isinstance(padding, str):
        return list(lax.padtype_to_pads(sizes, extent, stride, padding))
    if isinstance(padding, int):
        return [(padding, padding)] * len(sizes)
    if len(padding) != len(sizes):
        raise ValueError(f"padding {padding} does not name each of {len(sizes)} axes")
    return [(p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding]


def _channels_last(rank: int) -> lax.ConvDimensionNumbers:
    inputs = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(inputs, (rank + 1, rank, *range(rank)), inputs)


def _patches(inputs, kernel, stride, pads, groups, dilation, precision):
    """Every window gathered by shifted slices, then one matrix product a group."""
    window, (channels, features) = kernel.shape[:-2], kernel.shape[-2:]
    padded = lax.pad(
        inputs,
        jnp.zeros((), inputs.dtype),
        [(0, 0, 0), *((lo, hi, 0) for lo, hi in pads), (0, 0, 0)],
    )
    out = [
        (size - (k - 1) * d - 1) // s + 1
        for size, k, d, s in zip(
            padded.shape[1:-1], window, dilation, stride, strict=True
        )
    ]
    batch = inputs.shape[0]
    slices = []
    for flat in range(math.prod(window)):
        start, rest = [], flat
        for k, d in zip(reversed(window), reversed(dilation), strict=True):
            start.insert(0, rest % k * d)
            rest //= k
        limit = [
            i + (o - 1) * s + 1 for i, o, s in zip(start, out, stride, strict=True)
        ]
        slices.append(
            lax.slice(
                padded,
                (0, *start, 0),
                (batch, *limit, padded.shape[-1]),
                (1, *stride, 1),
            )
        )
    rows = math.prod([batch, *out])
    if groups == 1:
        cols = jnp.concatenate(slices, -1).reshape(rows, -1)
        flat_kernel = kernel.reshape(-1, features)
        result = jnp.dot(cols, flat_kernel, precision=precision)
    else:
        cols = jnp.stack([s.reshape(rows, groups, channels) for s in slices], 2)
        flat_kernel = kernel.reshape(-1, channels, groups, features // groups)
        result = jnp.einsum("rgkc,kcgo->rgo", cols, flat_kernel, precision=precision)
    return result.reshape(batch, *out, features)
