"""Layers that the classifiers and the generators share.

Channels are last everywhere. Norms follow PyTorch: the variance is the mean squared
distance from the mean, computed in a second pass (`E[x^2] - E[x]^2` loses all digits
when the mean is large), statistics are float32 at least, and epsilon has no default,
because the ported models differ in it.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gptfl_jax import convolution
from gptfl_jax.convolution import Padding, conv

__all__ = [
    "BatchNorm",
    "Conv",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Norm",
    "adaptive_avg_pool",
    "avg_pool",
    "conv",
    "dense",
    "flatten",
    "frame_mask",
    "hide_padding",
    "max_pool",
    "mean_over_time",
    "norm",
    "torch_uniform",
]

Norm = Literal["batch", "group", "instance", "none"]


class Conv(flax.linen.Module):
    """`flax.linen.Conv`, computed by `conv` in the form that suits the backend.

    The parameters `kernel` [*kernel_size, in_channels / groups, features] and `bias`
    [features], their initial values and the meaning of every attribute are those of
    `flax.linen.Conv`. An integer `kernel_size` is a window on one axis. `padding` is
    "SAME", "VALID", a width, or a width or pair (before, after) an axis.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(
        self, inputs: Float[Array, "*batch_spatial channels"]
    ) -> Float[Array, "*batch_out_spatial features"]:
        """Convolves `inputs` [*batch, *spatial, channels]; any number of batch axes."""
        window = self.kernel_size
        window = (window,) if isinstance(window, int) else tuple(window)
        groups, channels = self.feature_group_count, inputs.shape[-1]
        if channels % groups or self.features % groups:
            raise ValueError(
                f"{channels} channels and {self.features} features cannot both be "
                f"split into feature_group_count={groups} groups"
            )
        kernel = self.param(
            "kernel",
            self.kernel_init,
            (*window, channels // groups, self.features),
            self.param_dtype,
        )
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (self.features,), self.param_dtype
            )
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        batch = inputs.shape[: -len(window) - 1]
        outputs = conv(
            inputs.reshape(-1, *inputs.shape[len(batch) :]),
            kernel,
            self.strides,
            self.padding,
            groups,
            self.kernel_dilation,
            self.precision,
        )
        if bias is not None:
            outputs = outputs + bias
        return outputs.reshape(*batch, *outputs.shape[1:])


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


class GroupNorm(flax.linen.Module):
    """Normalises groups of channels of each example (Wu and He 2018, arXiv 1803.08494).

    `epsilon` is added to the variance. Parameters: `scale` and `bias`, both [channels].
    """

    num_groups: int
    epsilon: float
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        channels = inputs.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"{channels} channels cannot be split into {self.num_groups} groups"
            )
        return _normalise_groups(self, inputs, self.num_groups)


class InstanceNorm(flax.linen.Module):
    """Normalises each channel of each example over its positions (Ulyanov et al. 2016).

    `epsilon` is added to the variance. Parameters: `scale` and `bias`, both [channels].
    """

    epsilon: float
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        return _normalise_groups(self, inputs, inputs.shape[-1])


def _normalise_groups(module, inputs, groups):
    """Group norm with the parameters of a module; one channel a group is instance
    norm."""
    x = inputs.astype(_statistics_dtype(inputs.dtype))
    x = x.reshape(inputs.shape[0], -1, inputs.shape[-1])
    x = _traced_group_norm(x, *_scale_and_bias(module, x), groups, module.epsilon)
    return x.reshape(inputs.shape).astype(module.dtype or inputs.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _group_norm(x, scale, bias, groups, epsilon):
    """Norm of x [batch, positions, channels]. The gradient needs nothing but x and
    sums over the positions, so nothing as large as x is kept beside it."""
    return _group_norm_forward(x, scale, bias, groups, epsilon)[0]


def _group_norm_forward(x, scale, bias, groups, epsilon):
    x = convolution.keep(x)
    mean = _group_mean(x.mean(1, keepdims=True), groups)
    variance = _group_mean(jnp.square(x - mean).mean(1, keepdims=True), groups)
    inverse = lax.rsqrt(variance + epsilon)
    factor = convolution.keep(inverse * scale)
    return (x - mean) * factor + bias, (x, mean, inverse, factor, scale)


def _group_norm_backward(groups, epsilon, residuals, gradient):
    x, mean, inverse, factor, scale = residuals
    gradient = convolution.keep(gradient)
    d_bias = gradient.sum(1, keepdims=True)
    d_scale = (gradient * (x - mean)).sum(1, keepdims=True) * inverse
    # By what the gradients through mean and variance lower that of x.
    positions = x.shape[1]
    level = inverse * _group_mean(d_bias * scale / positions, groups)
    slope = inverse**2 * _group_mean(d_scale * scale / positions, groups)
    level, slope = convolution.keep((level, slope))
    d_x = gradient * factor - level - (x - mean) * slope
    return d_x, d_scale.sum((0, 1)), d_bias.sum((0, 1))


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)
# As convolutions do, layers of one shape share what one of them has traced.
_traced_group_norm = jax.jit(_group_norm, static_argnums=(3, 4))


def _group_mean(x, groups):
    """Mean over the channels of each group, repeated for each of them."""
    if groups == x.shape[-1]:
        return x
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    mean = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
    return mean.reshape(x.shape)


class LayerNorm(flax.linen.Module):
    """Normalises the last axis (Ba et al. 2016, arXiv 1607.06450).

    `epsilon` is added to the variance. Parameters: `scale` and `bias`, both [features].
    """

    epsilon: float
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(self, inputs: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        mean, variance = _moments(x, (-1,))
        x = (x - mean) * lax.rsqrt(variance + self.epsilon)
        scale, bias = _scale_and_bias(self, x)
        return (x * scale + bias).astype(self.dtype or inputs.dtype)


class BatchNorm(flax.linen.Module):
    """Normalises each channel over a batch (Ioffe and Szegedy 2015, arXiv 1502.03167).

    As PyTorch's: a training batch is normalised with its own (biased) variance, while
    the running variance follows the unbiased one, n / (n - 1) times as large.

    `running = momentum * running + (1 - momentum) * batch`, which makes `momentum` one
    minus PyTorch's. Parameters: `scale` and `bias`; collection `batch_stats`: `mean`
    and `var`; all [channels].
    """

    epsilon: float
    momentum: float = 0.9
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(
        self,
        inputs: Float[Array, "batch *spatial channels"],
        train: bool,
        mask: Bool[Array, " batch"] | Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Normalises `inputs`; with `mask`, rows of mask 0 do not count (padding)."""
        shape = inputs.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        scale, bias = _scale_and_bias(self, x)
        if train:
            real = jnp.ones(x.shape[0], bool) if mask is None else mask != 0
            x, batch_mean, batch_var = _batch_norm(x, scale, bias, real, self.epsilon)
            if not self.is_initializing():
                count = _numbers(x, real)
                unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
                for running, batch in ((mean, batch_mean), (var, unbiased)):
                    new = (1 - self.momentum) * batch.astype(running.value.dtype)
                    running.value = self.momentum * running.value + new
        else:
            x = (x - mean.value) * lax.rsqrt(var.value + self.epsilon) * scale + bias
        return x.astype(self.dtype or inputs.dtype)


def _numbers(x, real):
    """How many numbers of a channel belong to real rows."""
    return real.sum(dtype=x.dtype) * math.prod(x.shape[1:-1])


def _batch_norm(x, scale, bias, real, epsilon):
    """Norm of x [batch, ..., channels] by the mean and variance of each channel over
    the real rows, and these two, which carry no gradient. Without real rows they are 0.
    """
    outputs, mean, variance = _traced_batch_norm(x, scale, bias, real, epsilon)
    return outputs, lax.stop_gradient(mean), lax.stop_gradient(variance)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _batch_norm_with_moments(x, scale, bias, real, epsilon):
    return _batch_norm_forward(x, scale, bias, real, epsilon)[0]


def _batch_norm_forward(x, scale, bias, real, epsilon):
    x = convolution.keep(x)
    axes = tuple(range(x.ndim - 1))
    rows = real.reshape(-1, *[1] * (x.ndim - 1))
    count = jnp.maximum(_numbers(x, real), 1)
    mean = jnp.where(rows, x, 0).sum(axes) / count
    variance = jnp.where(rows, jnp.square(x - mean), 0).sum(axes) / count
    inverse = lax.rsqrt(variance + epsilon)
    factor = convolution.keep(inverse * scale)
    outputs = (x - mean) * factor + bias, mean, variance
    return outputs, (x, mean, inverse, factor, count, rows)


def _batch_norm_backward(epsilon, residuals, gradients):
    x, mean, inverse, factor, count, rows = residuals
    gradient = convolution.keep(gradients[0])
    axes = tuple(range(x.ndim - 1))
    d_bias = gradient.sum(axes)
    d_scale = (gradient * (x - mean)).sum(axes) * inverse
    # By what the gradients through mean and variance lower that of a real x.
    level, slope = convolution.keep(
        (factor * d_bias / count, factor * inverse * d_scale / count)
    )
    lowered = jnp.where(rows, level + (x - mean) * slope, 0)
    return gradient * factor - lowered, d_scale, d_bias, None


_batch_norm_with_moments.defvjp(_batch_norm_forward, _batch_norm_backward)
_traced_batch_norm = jax.jit(_batch_norm_with_moments, static_argnums=(4,))


def _moments(x, axes):
    mean = jnp.mean(x, axes, keepdims=True)
    return mean, jnp.mean(jnp.square(x - mean), axes, keepdims=True)


def _statistics_dtype(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _scale_and_bias(module, x):
    """The learned ones of a norm, or 1 and 0 where it has none, as the type of x."""
    shape = x.shape[-1:]
    scale, bias = jnp.ones(shape, x.dtype), jnp.zeros(shape, x.dtype)
    if module.use_scale:
        scale = module.param("scale", module.scale_init, shape, module.param_dtype)
    if module.use_bias:
        bias = module.param("bias", module.bias_init, shape, module.param_dtype)
    return scale.astype(x.dtype), bias.astype(x.dtype)


def norm(
    x: Float[Array, "batch *spatial channels"],
    kind: Norm,
    train: bool,
    mask: Bool[Array, " batch"] | Float[Array, " batch"] | None,
    name: str,
) -> Float[Array, "batch *spatial channels"]:
    """A norm of a classifier, with the epsilon and momentum of PyTorch.

    Called where a module calls its layers; the layer is called `name`. Groups are as
    many as divide both 32 and the channels, at most.
    """
    match kind:
        case "batch":
            return BatchNorm(epsilon=1e-5, momentum=0.9, name=name)(x, train, mask)
        case "group":
            groups = math.gcd(32, x.shape[-1])
            return GroupNorm(groups, epsilon=1e-5, name=name)(x)
        case "instance":
            return InstanceNorm(epsilon=1e-5, name=name)(x)
    return x


def torch_uniform(inputs: int) -> Initializer:
    """U(-1 / sqrt(inputs), 1 / sqrt(inputs)): torch's initial weights and biases.

    Args:
        inputs: that enter one output: channels times the window's size.
    """

    def initial(key, shape, dtype=jnp.float32):
        bound = inputs**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initial


def dense(
    x: Float[Array, "*batch channels"], features: int, name: str
) -> Float[Array, "*batch features"]:
    """A linear layer that begins as PyTorch's, called as `norm` is."""
    start = torch_uniform(x.shape[-1])
    return flax.linen.Dense(features, kernel_init=start, bias_init=start, name=name)(x)


def flatten(x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch all"]:
    """All numbers of an example in a row, in PyTorch's order: channel by channel."""
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


# Sequences of several lengths in one array, padding behind the shorter ones.


def frame_mask(
    lengths: Int[Array, " batch"], frames: int
) -> Bool[Array, "batch frames"]:
    """True for the real frames, the first `lengths` of each clip."""
    return jnp.arange(frames) < lengths[:, None]


def hide_padding(
    x: Float[Array, "batch frames channels"], lengths: Int[Array, " batch"] | None
) -> Float[Array, "batch frames channels"]:
    """Zero behind each clip's end; the same without lengths."""
    if lengths is None:
        return x
    return jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0)


def mean_over_time(
    x: Float[Array, "batch frames channels"], lengths: Int[Array, " batch"] | None
) -> Float[Array, "batch channels"]:
    """Mean over each clip's real frames, or over all without lengths."""
    if lengths is None:
        return x.mean(1)
    total = hide_padding(x, lengths).sum(1)
    return total / jnp.maximum(lengths, 1)[:, None].astype(x.dtype)
