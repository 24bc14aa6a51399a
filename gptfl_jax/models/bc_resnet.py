"""BC-ResNet: broadcasted residual networks for keyword spotting (arXiv 2106.04140)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import he_normal
from jaxtyping import Array, Bool, Float, Int

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import (
    BatchNorm,
    Conv,
    dense,
    frame_mask,
    hide_padding,
    mean_over_time,
)

# Channels of the four stages and of the last convolution, in units of `width`; blocks
# of each stage; and whether its first block halves the bands.
_CHANNELS, _LAST = (1, 1.5, 2, 2.5), 4
_BLOCKS = (2, 2, 4, 4)
_HALVES = (False, True, True, False)
_EPSILON = 1e-5


def _conv(x, features, window, name, stride=1, depthwise=False, dilation=1, bands=None):
    """A convolution over [frames, bands], padded on both sides of both axes."""
    frames = dilation * (window[0] // 2)
    bands = window[1] // 2 if bands is None else bands
    return Conv(
        features,
        window,
        (1, stride),
        padding=((frames, frames), (bands, bands)),
        kernel_dilation=(dilation, 1),
        feature_group_count=x.shape[-1] if depthwise else 1,
        use_bias=False,
        kernel_init=he_normal(),
        name=name,
    )(x)


class SubSpectralNorm(nn.Module):
    """Batch norm of each channel in each of `groups` ranges of bands.

    From arXiv 2103.13620. Parameters and statistics are [channels * groups], the ranges
    of a channel side by side.
    """

    groups: int

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames bands channels"],
        train: bool,
        real: Bool[Array, "batch frames"] | None,
    ) -> Float[Array, "batch frames bands channels"]:
        batch, frames, bands, channels = inputs.shape
        x = inputs.reshape(batch, frames, self.groups, -1, channels)
        x = jnp.moveaxis(x, 2, -1)
        apart = x.shape
        x = x.reshape(*apart[:3], channels * self.groups)
        x = BatchNorm(_EPSILON, name="norm")(x, train, real)
        return jnp.moveaxis(x.reshape(apart), -1, 2).reshape(inputs.shape)


class Block(nn.Module):
    """relu(f2(x) + f1(mean over bands of f2(x)) + x).

    f2 is a convolution over bands and a sub-spectral norm; f1 one over time, a norm, a
    swish and a 1x1 convolution, broadcast to all bands. Both convolve each channel by
    itself. Where the number of channels changes, x first goes through a 1x1
    convolution, a norm and a relu, and is not added.
    """

    features: int
    stride: int
    dilation: int
    groups: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames bands channels"],
        train: bool,
        lengths: Int[Array, " batch"] | None,
        real: Bool[Array, "batch frames"] | None,
    ) -> Float[Array, "batch frames new_bands features"]:
        x, width = inputs, self.features
        changes = inputs.shape[-1] != width
        if changes:
            x = _conv(x, width, (1, 1), "enter")
            x = jax.nn.relu(BatchNorm(_EPSILON, name="enter_norm")(x, train, real))
        x = _conv(x, width, (1, 3), "over_bands", self.stride, depthwise=True)
        x = SubSpectralNorm(self.groups, name="over_bands_norm")(x, train, real)
        y = hide_padding(x.mean(2, keepdims=True), lengths)
        y = _conv(y, width, (3, 1), "over_time", 1, True, self.dilation)
        y = BatchNorm(_EPSILON, name="over_time_norm")(y, train, real)
        y = _conv(jax.nn.swish(y), width, (1, 1), "mix")
        y = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(y)
        return jax.nn.relu(x + y if changes else x + y + inputs)


class Model(nn.Module):
    """A convolution, 12 blocks in 4 stages, two convolutions, mean over time, linear.

    9,232 parameters at tau 1 and 321,068 at tau 8, for 12 classes. The paper has 40
    bands, of which its last convolution sees 5. Clips of any length; a clip's result is
    that of the clip alone, whatever the padding behind it. Inputs are features, or the
    pair (features, lengths); without lengths all frames are real.

    Attributes:
        num_classes: outputs.
        tau: the size: 8 `tau` channels in the first stage, up to 32 `tau` at the end.
            The paper has 1, 1.5, 2, 3, 6 and 8.
        sub_bands: ranges of bands that are normalised apart. 8 times as many must
            divide the bands: 5 for 40 or 80 bands, 4 or 8 for 64 or 128.
        dropout: share of the channels that each block's 1x1 convolution drops in
            training.
    """

    num_classes: int
    tau: rules.Positive = 1
    sub_bands: rules.PositiveCount = 5
    dropout: rules.ProperFraction = 0.1

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames bands"]
        | tuple[Float[Array, "batch frames bands"], Int[Array, " batch"]],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0, and padding, do not enter the batch statistics."""
        x, lengths = inputs if isinstance(inputs, tuple) else (inputs, None)
        frames, bands = x.shape[1:]
        if bands % (8 * self.sub_bands) or bands < 40:
            raise UserError(
                f"config.model.options.sub_bands = {self.sub_bands}: does not fit "
                f"{bands} bands, which must be 40 or more and a multiple of 8 times it"
            )
        real = None
        if lengths is not None or mask is not None:
            real = jnp.ones((x.shape[0], frames), bool)
            if lengths is not None:
                real &= frame_mask(lengths, frames)
            if mask is not None:
                real &= (mask != 0)[:, None]
        width = 8 * self.tau
        x = hide_padding(x, lengths)[..., None]
        x = _conv(x, int(2 * width), (5, 5), "stem", 2)
        x = jax.nn.relu(BatchNorm(_EPSILON, name="stem_norm")(x, train, real))
        for stage, blocks in enumerate(_BLOCKS):
            for i in range(blocks):
                x = Block(
                    features=int(_CHANNELS[stage] * width),
                    stride=2 if _HALVES[stage] and not i else 1,
                    dilation=2**stage,
                    groups=self.sub_bands,
                    dropout=self.dropout,
                    name=f"stage{stage}_block{i}",
                )(x, train, lengths, real)
        x = hide_padding(x, lengths)
        x = _conv(x, x.shape[-1], (5, 5), "last", depthwise=True, bands=0)
        x = _conv(x, int(_LAST * width), (1, 1), "last_mix")
        x = jax.nn.relu(BatchNorm(_EPSILON, name="last_norm")(x, train, real))
        return dense(mean_over_time(x.mean(2), lengths), self.num_classes, "classifier")
