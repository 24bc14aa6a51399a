"""Layers that the classifiers and the generators share.

Channels are last everywhere. Norms follow PyTorch: the variance is the mean squared
distance from the mean, computed in a second pass (`E[x^2] - E[x]^2` loses all digits
when the mean is large), statistics are float32 at least, and epsilon has no default,
because the ported models differ in it.
"""

import math
from collections.abc import Sequence

import flax.linen
import jax.numpy as jnp
from flax.linen import initializers
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Bool, Float

from gptfl_jax import convolution
from gptfl_jax.convolution import Padding, conv

__all__ = [
    "BatchNorm",
    "Conv",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "avg_pool",
    "conv",
    "max_pool",
]


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

    Args:
      inputs: examples with the channels last.
      window: its size, one for all axes or one an axis.
      stride: steps between windows; by default the window's size.
      padding: as in `conv`.
    """
    window, stride, pads = _windows(inputs, window, stride, padding)
    return lax.reduce_window(inputs, -jnp.inf, lax.max, window, stride, pads)


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
      count_include_pad: whether padding counts as zeros in the mean, as in PyTorch, or
        is left out of it.
    """
    window, stride, pads = _windows(inputs, window, stride, padding)
    total = lax.reduce_window(inputs, 0.0, lax.add, window, stride, pads)
    if count_include_pad:
        count = jnp.asarray(math.prod(window))
    else:
        ones = jnp.ones((1, *inputs.shape[1:-1], 1), inputs.dtype)
        count = lax.reduce_window(ones, 0.0, lax.add, window, stride, pads)
    return total / count.astype(inputs.dtype)


def _windows(inputs, window, stride, padding):
    rank = inputs.ndim - 2
    window = convolution.each_axis(window, rank)
    stride = window if stride is None else convolution.each_axis(stride, rank)
    pads = convolution.padding_widths(padding, inputs.shape[1:-1], window, stride)
    return (1, *window, 1), (1, *stride, 1), [(0, 0), *pads, (0, 0)]


def _moments(inputs, axes, where=None):
    mean = jnp.mean(inputs, axes, keepdims=True, where=where)
    variance = jnp.mean(jnp.square(inputs - mean), axes, keepdims=True, where=where)
    return mean, variance


def _statistics_dtype(dtype):
    return jnp.promote_types(dtype, jnp.float32)


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
        axes = tuple(range(1, inputs.ndim - 1))
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        mean, variance = _moments(x, axes)
        return _affine(self, inputs, (x - mean) * lax.rsqrt(variance + self.epsilon))


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
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        x = x.reshape(*inputs.shape[:-1], self.num_groups, -1)
        mean, variance = _moments(x, (*range(1, inputs.ndim - 1), x.ndim - 1))
        x = (x - mean) * lax.rsqrt(variance + self.epsilon)
        return _affine(self, inputs, x.reshape(inputs.shape))


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
        return _affine(self, inputs, (x - mean) * lax.rsqrt(variance + self.epsilon))


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
        if not train:
            x = (x - mean.value) * lax.rsqrt(var.value + self.epsilon)
            return _affine(self, inputs, x)
        axes = tuple(range(inputs.ndim - 1))
        where, count = None, jnp.asarray(inputs.size / inputs.shape[-1], x.dtype)
        if mask is not None:
            where = (mask != 0).reshape(-1, *[1] * (inputs.ndim - 1))
            count = count * jnp.mean(where, dtype=x.dtype)
        batch_mean, batch_var = _moments(x, axes, where)
        if not self.is_initializing():
            unbiased = batch_var * (count / jnp.maximum(count - 1, 1))
            for running, batch in ((mean, batch_mean), (var, unbiased)):
                new = batch.reshape(shape).astype(running.value.dtype)
                running.value = self.momentum * running.value + (
                    (1 - self.momentum) * new
                )
        x = (x - batch_mean) * lax.rsqrt(batch_var + self.epsilon)
        return _affine(self, inputs, x)


def _affine(module, inputs, x):
    """Learned scale and bias on the last axis, then the module's dtype."""
    for name, used, init in (
        ("scale", module.use_scale, module.scale_init),
        ("bias", module.use_bias, module.bias_init),
    ):
        if used:
            value = module.param(name, init, inputs.shape[-1:], module.param_dtype)
            value = value.astype(x.dtype)
            x = x * value if name == "scale" else x + value
    return x.astype(module.dtype or inputs.dtype)
