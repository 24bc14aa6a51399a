"""Convolutions and linear layers."""

import math
from collections.abc import Sequence

import flax.linen
import jax
import jax.numpy as jnp
from flax.linen import initializers
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Float

from gptfl_jax.convolution import Before, Padding, conv


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
        self,
        inputs: Float[Array, "*batch_spatial channels"],
        before: Before | None = None,
        plus: Float[Array, "*#batch_out_spatial features"] | None = None,
    ) -> Float[Array, "*batch_out_spatial features"]:
        """Convolves `inputs` [*batch, *spatial, channels]; any number of batch axes.

        `before` and `plus` are those of `conv`.
        """
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
        if plus is not None:
            plus = plus.reshape(-1, *plus.shape[len(batch) :])
        outputs = conv(
            inputs.reshape(-1, *inputs.shape[len(batch) :]),
            kernel,
            self.strides,
            self.padding,
            groups,
            self.kernel_dilation,
            self.precision,
            bias,
            before,
            plus,
        )
        return outputs.reshape(*batch, *outputs.shape[1:])


class Dense(flax.linen.Module):
    """`flax.linen.Dense`, for which any number of batch axes are one.

    Of several, XLA for CPUs would write what the gradient of the weights multiplies
    anew, transposed: from 192 to 768 channels of 8 x 65 tokens it took 2.5 times as
    long. The parameters `kernel` [channels, features] and `bias` [features], their
    initial values and the meaning of every attribute are those of `flax.linen.Dense`.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: lax.PrecisionLike = None
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(
        self, inputs: Float[Array, "*batch channels"]
    ) -> Float[Array, "*batch features"]:
        *batch, channels = inputs.shape
        shape = channels, self.features
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, shape[1:], self.param_dtype)
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        rows = inputs.reshape(math.prod(batch), channels)
        outputs = jnp.dot(rows, kernel, precision=self.precision)
        if bias is not None:
            outputs += bias
        return outputs.reshape(*batch, self.features)


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
    return Dense(features, kernel_init=start, bias_init=start, name=name)(x)


def flatten(x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch all"]:
    """All numbers of an example in a row, in PyTorch's order: channel by channel."""
    return jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)


def channel_shuffle(
    x: Float[Array, "*batch_spatial channels"], groups: int
) -> Float[Array, "*batch_spatial channels"]:
    """Channel i of group g becomes channel i * groups + g (arXiv 1707.01083)."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)
