"""Blocks that the denoising UNet and the autoencoder share.

Submodules carry the names of `diffusers`' modules, with `_0` where those have `.0`, so
that the name of a released weight follows from the parameter's path
(`gptfl_jax.released.torch_weights`).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gptfl_jax import nn
from gptfl_jax.generators.attention import attention


class Attention(linen.Module):
    """Multi-head attention of a sequence to itself or to `context`.

    Keys and values are taken from the collection "context" where it has them.
    """

    heads: int
    inner_features: int
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        inputs: Float[Array, "batch length features"],
        context: Float[Array, "batch keys context_features"] | None = None,
    ) -> Float[Array, "batch length features"]:
        def project(name, sequence):
            dense = nn.Dense(
                self.inner_features, self.use_bias, dtype=self.dtype, name=name
            )
            return dense(sequence)

        def split(sequence):
            return sequence.reshape(*sequence.shape[:2], self.heads, -1)

        context = inputs if context is None else context
        query = project("to_q", inputs)
        if self.has_variable("context", "to_k"):
            key, value = (self.get_variable("context", n) for n in ("to_k", "to_v"))
        else:
            key, value = project("to_k", context), project("to_v", context)
        outputs = attention(split(query), split(key), split(value))
        outputs = outputs.reshape(query.shape)
        return nn.Dense(inputs.shape[-1], dtype=self.dtype, name="to_out_0")(outputs)


class ResnetBlock(linen.Module):
    """Two convolutions with a residual path, and the time embedding between them."""

    features: int
    num_groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        time_embedding: Float[Array, "#batch embedding"] | None = None,
    ) -> Float[Array, "batch height width features"]:
        def norm(name, x):
            module = nn.GroupNorm(
                self.num_groups, self.epsilon, dtype=self.dtype, name=name
            )
            return module.then(x, jax.nn.silu)

        def conv(name, x, size=3, **options):
            module = nn.Conv(
                self.features,
                (size, size),
                padding=size // 2,
                dtype=self.dtype,
                name=name,
            )
            return module(x, **options)

        shift = None
        if time_embedding is not None:
            shift = nn.Dense(self.features, dtype=self.dtype, name="time_emb_proj")
            shift = shift(jax.nn.silu(time_embedding))[:, None, None, :]
        x = conv("conv1", inputs, before=norm("norm1", inputs), plus=shift)
        if inputs.shape[-1] != self.features:
            inputs = conv("conv_shortcut", inputs, size=1)
        return conv("conv2", x, before=norm("norm2", x), plus=inputs)


class Downsample(linen.Module):
    """Halves height and width by a convolution of stride 2.

    `padding` is (before, after) on both axes: (1, 1) in the UNet, (0, 1) in the VAE.
    """

    padding: tuple[int, int]
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self, inputs: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch half_height half_width channels"]:
        return nn.Conv(
            inputs.shape[-1],
            (3, 3),
            strides=2,
            padding=(self.padding, self.padding),
            dtype=self.dtype,
            name="conv",
        )(inputs)


class Upsample(linen.Module):
    """Doubles height and width by the nearest neighbour, then a convolution."""

    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        size: tuple[int, int] | None = None,
    ) -> Float[Array, "batch out_height out_width channels"]:
        """Upsamples to `size` (height, width), twice that of `inputs` when None."""
        height, width = inputs.shape[1:3]
        size = size or (2 * height, 2 * width)
        if size == (2 * height, 2 * width):
            x = jnp.repeat(jnp.repeat(inputs, 2, axis=1), 2, axis=2)
        else:
            rows, columns = (
                np.arange(new) * old // new
                for new, old in zip(size, (height, width), strict=True)
            )
            x = inputs[:, rows][:, :, columns]
        channels = inputs.shape[-1]
        conv = nn.Conv(channels, (3, 3), padding=1, dtype=self.dtype, name="conv")
        return conv(x)


def per_level(value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    """An option that is one number for all resolutions or one for each."""
    return (value,) * levels if isinstance(value, int) else value


def sinusoidal_embedding(
    positions: Float[Array, " batch"],
    features: int,
    *,
    cosine_first: bool,
    frequency_shift: int | float,
    max_period: float = 10_000.0,
) -> Float[Array, "batch features"]:
    """Sines and cosines of `positions` at geometrically spaced frequencies."""
    half = features // 2
    exponents = -math.log(max_period) * np.arange(half) / (half - frequency_shift)
    angles = positions[:, None] * jnp.asarray(np.exp(exponents), jnp.float32)
    parts = [jnp.sin(angles), jnp.cos(angles)]
    embedding = jnp.concatenate(parts[::-1] if cosine_first else parts, axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))
