"""Convolution in the form that runs fast on the backend at hand.

`choice` decides by what `places` says of where it is traced and by the shapes; the
forms are in `unfolded`, `row_split`, `winograd` and `strips`.

`conv` is `jax.lax.conv_general_dilated` with the channels last. On GPU and TPU it is
exactly that, except on a GPU where networks of many clients stand side by side under
`vmap` (`side_by_side`): of kernels that differ by client JAX makes one convolution with
a group for each, which an H200 ran 2 to 6 times slower than "patches", one product for
each. On a CPU, XLA runs the gradients of `lax.conv` inside `scan`, `fori_loop` or
`while_loop` 3 to 70 times slower than outside (jax 0.10.2; jax issue 12868), and local
training is such a loop; there convolutions are mostly written with shifted slices
around matrix products. `choose` decides among the forms, by the place and by the
shapes. A place counts as inside a loop unless the code that traces it says otherwise
(`outside_loops`), as the generators do. Forms inside a loop:

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
- "direct": XLA's convolution, and each gradient as another with the channels last,
  which a loop does not slow down: a few channels to 32 or 64 outputs, and large windows
  of a few channels. Of 7x7 windows with stride 2 on 224 pixels it took 73 ms forward
  and for the kernel's gradient, "patches" 134, and none of their memory.
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
128 channels: 4e-7 (row_split), 7e-7 (direct), 2e-6 (3x3 winograd), 5e-6 (5x5
winograd), the same for both gradients (of direct's kernel, on 64 x 64 pixels, 3e-6);
2e-6 on one axis. Where a precision above JAX's default is asked for,
"winograd" is not taken. Gradients, `vmap`, `jit`, loops and `shard_map` work with every
form, forward mode (`jax.jvp`) with "lax" only.
"""

from collections.abc import Sequence

import jax
from jax import lax
from jaxtyping import Array, Float

from gptfl_jax.convolution import direct, row_split, strips, unfolded, winograd
from gptfl_jax.convolution.before import Before, Elementwise, with_added
from gptfl_jax.convolution.choice import choose
from gptfl_jax.convolution.geometry import (
    Geometry,
    Padding,
    Shape,
    each_axis,
    extents,
    keep,
    padding_widths,
)
from gptfl_jax.convolution.places import (
    Form,
    form,
    in_parts,
    outside_loops,
    side_by_side,
)

__all__ = [
    "Before",
    "Elementwise",
    "Form",
    "Geometry",
    "Padding",
    "Shape",
    "choose",
    "conv",
    "each_axis",
    "form",
    "in_parts",
    "keep",
    "outside_loops",
    "padding_widths",
    "side_by_side",
]


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
    seen = extents(kernel.shape[:rank], dilation)
    pads = padding_widths(padding, inputs.shape[1:-1], seen, stride)
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
        outputs = direct.xla_convolution(inputs, kernel, geometry, precision)
    return with_added(outputs, bias, plus)


# Under `jit`, layers of one shape share what one of them has traced.
_CPU_FORMS = {
    "direct": jax.jit(direct.direct, static_argnums=(2, 3)),
    "patches": jax.jit(unfolded.patches, static_argnums=(2, 3)),
    "product": jax.jit(unfolded.product, static_argnums=(2, 3)),
    "shifts": jax.jit(unfolded.shifts, static_argnums=(2, 3)),
    "row_split": jax.jit(row_split.row_split_in_blocks, static_argnums=(2, 3)),
    "winograd": jax.jit(winograd.winograd, static_argnums=(2, 3)),
}
_traced_winograd_strips = jax.jit(strips.winograd_strips, static_argnums=(5, 6))
