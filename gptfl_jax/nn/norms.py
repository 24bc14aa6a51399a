"""Norms, as PyTorch's.

The variance is the mean squared distance from the mean, computed in a second pass
(`E[x^2] - E[x]^2` loses all digits when the mean is large), statistics are float32 at
least, and epsilon has no default, because the ported models differ in it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import flax.linen
import jax
import jax.numpy as jnp
from flax.linen import initializers
from flax.typing import Dtype, Initializer
from jax import lax
from jaxtyping import Array, Bool, Float

from gptfl_jax import convolution

Norm = Literal["batch", "group", "instance", "none"]

# What the parts hold that are added up, in bytes: they stay in a processor's cache.
_PART_BYTES = 2**20
_static = functools.partial(dataclasses.field, metadata={"static": True})


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

    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        return self.then(inputs, _unchanged)(inputs)

    @flax.linen.compact
    def then(
        self,
        inputs: Float[Array, "batch *spatial channels"],
        activation: Callable[[Array], Array],
    ) -> "GroupNormThen":
        """The norm and `activation` after it, for a convolution of `inputs`."""
        channels = inputs.shape[-1]
        if channels % self.num_groups:
            raise ValueError(
                f"{channels} channels cannot be split into {self.num_groups} groups"
            )
        x = jax.ShapeDtypeStruct(inputs.shape, _statistics_dtype(inputs.dtype))
        scale, bias = _scale_and_bias(self, x)
        options = activation, self.num_groups, self.epsilon, self.dtype
        return GroupNormThen(scale, bias, *options)


def _unchanged(x):
    return x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupNormThen:
    """A group norm and an activation, of `GroupNorm.then`.

    A convolution that takes it as its `before` has no normalised copy of the inputs.
    """

    scale: Any  # [channels]; or whatever JAX puts in the place of a leaf.
    bias: Any
    activation: Callable[[Array], Array] = _static()
    groups: int = _static()
    epsilon: float = _static()
    dtype: Dtype | None = _static()

    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        """The activation of the normalised inputs."""
        x = _normalise_groups(inputs, self.scale, self.bias, self.groups, self.epsilon)
        return self.activation(x.astype(self.dtype or inputs.dtype))

    def numbers(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]]:
        """Of each example and channel what is subtracted, and the factor after it."""
        mean, inverse = _group_moments(inputs, self.groups, self.epsilon)
        return mean, inverse * self.scale

    def part(
        self,
        inputs: Float[Array, "batch *part channels"],
        numbers: tuple[Float[Array, "batch ..."], Float[Array, "batch ..."]],
    ) -> Float[Array, "batch *part channels"]:
        """The activation of some normalised inputs."""
        mean, factor = numbers
        x = (inputs - mean) * factor + self.bias
        return self.activation(x.astype(self.dtype or inputs.dtype))


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
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        scale, bias = _scale_and_bias(self, x)
        x = _normalise_groups(x, scale, bias, x.shape[-1], self.epsilon)
        return x.astype(self.dtype or inputs.dtype)


def _normalise_groups(inputs, scale, bias, groups, epsilon):
    """Group norm of examples of any number of axes; one channel a group is instance
    norm."""
    x = inputs.astype(_statistics_dtype(inputs.dtype))
    x = x.reshape(inputs.shape[0], -1, inputs.shape[-1])
    x = _traced_group_norm(x, scale, bias, groups, epsilon)
    return x.reshape(inputs.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _group_norm(x, scale, bias, groups, epsilon):
    """Norm of x [batch, positions, channels]. The gradient needs nothing but x and
    sums over the positions, so nothing as large as x is kept beside it."""
    return _group_norm_forward(x, scale, bias, groups, epsilon)[0]


def _group_norm_forward(x, scale, bias, groups, epsilon):
    x = convolution.keep(x)
    mean, inverse = _group_moments(x, groups, epsilon)
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


def _group_moments(x, groups, epsilon):
    """Mean of each group, and what scales it, for each of its channels."""
    mean_of = _mean_in_parts if convolution.in_parts() else _mean
    mean = _group_mean(mean_of(x), groups)
    variance = _group_mean(mean_of(x, lambda part: jnp.square(part - mean)), groups)
    return mean, lax.rsqrt(variance + epsilon)


def _group_mean(x, groups):
    """Mean over the channels of each group, repeated for each of them."""
    if groups == x.shape[-1]:
        return x
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    mean = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
    return mean.reshape(x.shape)


def _mean(x, function=lambda part: part):
    """Mean of function(x) [batch, *spatial, channels] over the positions, which stay
    as axes of length 1."""
    return function(x).mean(tuple(range(1, x.ndim - 1)), keepdims=True)


def _mean_in_parts(x, function=lambda part: part):
    """As `_mean`, without anything as large as x.

    XLA for CPUs reduces by a library, which takes nothing but whole arrays: what is
    reduced would be stored. So parts of x are added up, and only their sum is reduced.
    """
    rows = x.shape[1]
    size = max(1, _PART_BYTES // (x[:, 0].size * x.dtype.itemsize))
    if size >= rows:
        return _mean(x, function)
    axes = tuple(range(1, x.ndim - 1))

    def add(number, total):
        return total + function(lax.dynamic_slice_in_dim(x, number * size, size, 1))

    total = lax.fori_loop(1, rows // size, add, function(x[:, :size]))
    total = total.sum(axes, keepdims=True)
    if rows % size:
        total += function(x[:, -(rows % size) :]).sum(axes, keepdims=True)
    return total / math.prod(x.shape[1:-1])


class LayerNorm(flax.linen.Module):
    """Normalises the last axes together (Ba et al. 2016, arXiv 1607.06450).

    `axes` says how many. `epsilon` is added to the variance. Parameters: `scale` and
    `bias`, both of the shape of these axes.
    """

    epsilon: float
    axes: int = 1
    use_scale: bool = True
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scale_init: Initializer = initializers.ones
    bias_init: Initializer = initializers.zeros

    @flax.linen.compact
    def __call__(self, inputs: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        scale, bias = _scale_and_bias(self, x, self.axes)
        x = x.reshape(math.prod(inputs.shape[: -self.axes]), scale.size)
        x = _traced_layer_norm(x, scale.ravel(), bias.ravel(), self.epsilon)
        return x.reshape(inputs.shape).astype(self.dtype or inputs.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon):
    """Norm of each row of x [rows, numbers]. The gradient needs nothing but x and
    numbers of its rows."""
    mean, inverse = _moments(x, epsilon)
    return (x - mean) * inverse * scale + bias


def _moments(x, epsilon):
    """Mean of each row, and what scales it."""
    mean = x.mean(1, keepdims=True)
    return mean, lax.rsqrt(jnp.square(x - mean).mean(1, keepdims=True) + epsilon)


def _layer_norm_forward(x, scale, bias, epsilon):
    x = convolution.keep(x)
    mean, inverse = convolution.keep(_moments(x, epsilon))
    return (x - mean) * inverse * scale + bias, (x, mean, inverse, scale)


def _layer_norm_backward(epsilon, residuals, gradient):
    x, mean, inverse, scale = residuals
    gradient = convolution.keep(gradient)
    normal = (x - mean) * inverse
    # By what the gradients through mean and variance lower that of x.
    level = (gradient * scale).mean(1, keepdims=True)
    slope = (gradient * scale * normal).mean(1, keepdims=True)
    level, slope = convolution.keep((level, slope))
    d_x = inverse * (gradient * scale - level - normal * slope)
    return d_x, (gradient * normal).sum(0), gradient.sum(0)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)
_traced_layer_norm = jax.jit(_layer_norm, static_argnums=(3,))


class BatchNorm(flax.linen.Module):
    """Normalises each channel over a batch (Ioffe and Szegedy 2015, arXiv 1502.03167).

    As PyTorch's: a training batch is normalised with its own (biased) variance, while
    the running variance follows the unbiased one, n / (n - 1) times as large.

    `running = momentum * running + (1 - momentum) * batch`, which makes `momentum` one
    minus PyTorch's. Parameters: `scale` and `bias`; collection `batch_stats`: `mean`
    and `var`; all [channels]. Without `track_running_stats` there is no such
    collection, and every batch is normalised with its own statistics, in evaluation
    too: a prediction depends on what stands beside it in the batch.
    """

    epsilon: float
    momentum: float = 0.9
    track_running_stats: bool = True
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
        mask: Bool[Array, "batch ..."] | Float[Array, "batch ..."] | None = None,
    ) -> Float[Array, "batch *spatial channels"]:
        """Normalises `inputs`; with `mask`, rows of mask 0 do not count (padding).

        A mask of more axes is for positions too, by the first of their axes.
        """
        shape, tracked = inputs.shape[-1:], self.track_running_stats
        if tracked:
            mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
            var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = inputs.astype(_statistics_dtype(inputs.dtype))
        scale, bias = _scale_and_bias(self, x)
        if train or not tracked:
            real = jnp.ones(x.shape[0], bool) if mask is None else mask != 0
            x, batch_mean, batch_var = _batch_norm(x, scale, bias, real, self.epsilon)
            if tracked and not self.is_initializing():
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
    return real.sum(dtype=x.dtype) * math.prod(x.shape[real.ndim : -1])


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
    rows = real.reshape(*real.shape, *[1] * (x.ndim - real.ndim))
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


def _statistics_dtype(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _scale_and_bias(module, x, axes=1):
    """The learned ones of a norm, or 1 and 0 where it has none, as the type of x."""
    shape = x.shape[-axes:]
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
    groups: int = 32,
    track_running_stats: bool = True,
) -> Float[Array, "batch *spatial channels"]:
    """A norm of a classifier, with the epsilon and momentum of PyTorch.

    Called where a module calls its layers; the layer is called `name`. Groups are as
    many as divide both `groups` and the channels, at most.
    """
    match kind:
        case "batch":
            return BatchNorm(
                epsilon=1e-5, track_running_stats=track_running_stats, name=name
            )(x, train, mask)
        case "group":
            return GroupNorm(math.gcd(groups, x.shape[-1]), epsilon=1e-5, name=name)(x)
        case "instance":
            return InstanceNorm(epsilon=1e-5, name=name)(x)
    return x
