"""The HiFi-GAN vocoder (`SpeechT5HifiGan`) of SpeechT5 and AudioLDM.

Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity
Speech Synthesis" (arXiv 2010.05646).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from flax.linen.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gptfl_jax import nn
from gptfl_jax.errors import UserError
from gptfl_jax.released import torch_weights
from gptfl_jax.released.model_config import ModelConfig

# Before the last convolution PyTorch's default is used, not the config's slope.
_LAST_SLOPE = 0.01


@dataclasses.dataclass(frozen=True)
class HifiGanConfig(ModelConfig):
    """Options of `SpeechT5HifiGan`; the defaults are those of the PyTorch class.

    Attributes:
        model_in_dim: mel bands.
        sampling_rate: of the waveform, in Hz.
        upsample_initial_channel: channels before the first upsampling, which halves
            them, as each one does.
        upsample_rates: samples made of one, for each upsampling.
        upsample_kernel_sizes: window of each upsampling.
        resblock_kernel_sizes: windows of the residual blocks that follow each
            upsampling.
        resblock_dilation_sizes: dilations inside each of these blocks.
        leaky_relu_slope: of the activations, but for the last.
        normalize_before: the spectrogram is standardised by the mean and the scale that
            the checkpoint holds.
    """

    torch_class: ClassVar[str] = "SpeechT5HifiGan"
    fixed: ClassVar = {"model_type": ("speecht5_hifigan", "hifigan")}
    # Files of `transformers` hold dozens of unrelated options.
    without_effect: ClassVar = None

    model_in_dim: int = 80
    sampling_rate: int = 16000
    upsample_initial_channel: int = 512
    upsample_rates: tuple[int, ...] = (4, 4, 4, 4)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 8, 8)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    leaky_relu_slope: float = 0.1
    normalize_before: bool = True

    def __post_init__(self):
        for one, other in (
            ("upsample_rates", "upsample_kernel_sizes"),
            ("resblock_kernel_sizes", "resblock_dilation_sizes"),
        ):
            if len(getattr(self, one)) != len(getattr(self, other)):
                raise UserError(
                    f"{other} = {getattr(self, other)}: HifiGanConfig takes one for "
                    f"each of {one} = {getattr(self, one)}"
                )

    def num_samples(self, frames: Any) -> Any:
        """Samples of the waveform of so many frames: a number, or an array of them."""
        for rate, window in self._upsamplings:
            frames = _upsampled(frames, rate, window)
        return frames

    @property
    def _upsamplings(self):
        return zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)

    def to_json(self):
        names = {"model_type": "speecht5_hifigan", "architectures": [self.torch_class]}
        return names | super().to_json()


def _upsampled(length, rate, window):
    """Length after a transposed convolution padded by (window - rate) // 2."""
    return (length - 1) * rate + window - 2 * ((window - rate) // 2)


@functools.cache
def _leaky_relu(slope):
    """The same for all layers, which share what is traced with it."""
    return nn.Elementwise(lambda x: jax.nn.leaky_relu(x, slope))


def _cut(x, lengths):
    """`x` with zeros in place of what lies beyond each item's length."""
    if lengths is None:
        return x
    inside = jnp.arange(x.shape[1]) < lengths[:, None]
    return jnp.where(inside[:, :, None], x, 0)


class _TransposedConv(linen.Module):
    """A transposed convolution over time; `kernel` is [window, features, channels]."""

    features: int
    window: int
    rate: int
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        shape = (self.window, self.features, x.shape[-1])
        init = linen.initializers.lecun_normal(in_axis=-1, out_axis=-2)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", linen.initializers.zeros, (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        cut = (self.window - self.rate) // 2
        length = _upsampled(x.shape[1], self.rate, self.window)
        if self.window % self.rate:
            # As a convolution of the inputs with rate - 1 zeros between any two.
            width = self.window - 1 - cut
            x = jax.lax.conv_general_dilated(
                x,
                kernel[::-1].transpose(0, 2, 1),
                (1,),
                [(width, width)],
                lhs_dilation=(self.rate,),
                dimension_numbers=("NWC", "WIO", "NWC"),
            )
            return x + bias
        # One product gives what each input adds to its window; the windows overlap in
        # blocks of `rate` samples. No multiplication by zeros.
        blocks = self.window // self.rate
        added = jnp.einsum("btc,wfc->btwf", x, kernel)
        added = added.reshape(*x.shape[:2], blocks, self.rate, self.features)
        x = sum(
            jnp.pad(added[:, :, i], [(0, 0), (i, blocks - 1 - i), (0, 0), (0, 0)])
            for i in range(blocks)
        )
        x = x.reshape(len(x), -1, self.features)[:, cut : cut + length]
        return x + bias


class _ResidualBlock(linen.Module):
    """Pairs of convolutions, the first of each dilated, with residual paths."""

    window: int
    dilations: tuple[int, ...]
    slope: float
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x, lengths):
        before = _leaky_relu(self.slope)

        def conv(name, dilation, x, plus=None):
            module = nn.Conv(
                x.shape[-1],
                self.window,
                padding=(self.window * dilation - dilation) // 2,
                kernel_dilation=dilation,
                dtype=self.dtype,
                name=name,
            )
            return _cut(module(x, before, plus), lengths)

        for i, dilation in enumerate(self.dilations):
            x = conv(f"convs2_{i}", 1, conv(f"convs1_{i}", dilation, x), plus=x)
        return x


class HifiGan(linen.Module):
    """Waveforms of log-mel spectrograms.

    Variables: `params`, and in the collection `statistics` the mean and the scale of
    each mel band, `mel_mean` and `mel_scale`, which PyTorch's class has as buffers.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs.
    """

    config: HifiGanConfig
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        mels: Float[Array, "batch frames mels"],
        lengths: Int[Array, " batch"] | None = None,
    ) -> Float[Array, "batch samples"]:
        """Waveforms in [-1, 1].

        Args:
            mels: log-mel spectrograms.
            lengths: frames of each; the rest is padding, which has no influence: the
                waveform's first `config.num_samples(length)` samples are those that the
                item alone gives, the others are 0. None: all frames count.
        """
        config = self.config
        bands = (config.model_in_dim,)
        mean = self.variable("statistics", "mel_mean", jnp.zeros, bands)
        scale = self.variable("statistics", "mel_scale", jnp.ones, bands)

        def conv(name, features, x):
            module = nn.Conv(features, 7, padding=3, dtype=self.dtype, name=name)
            return _cut(module(x), lengths)

        x = mels
        if config.normalize_before:
            x = (x - mean.value) / scale.value
        x = conv("conv_pre", config.upsample_initial_channel, _cut(x, lengths))
        blocks = list(
            zip(
                config.resblock_kernel_sizes,
                config.resblock_dilation_sizes,
                strict=True,
            )
        )
        for i, (rate, window) in enumerate(config._upsamplings):
            features = config.upsample_initial_channel // 2 ** (i + 1)
            x = _TransposedConv(
                features, window, rate, self.dtype, name=f"upsampler_{i}"
            )(jax.nn.leaky_relu(x, config.leaky_relu_slope))
            if lengths is not None:
                lengths = _upsampled(lengths, rate, window)
            x = _cut(x, lengths)
            total = 0
            for j, (window, dilations) in enumerate(blocks):
                total += _ResidualBlock(
                    window,
                    dilations,
                    config.leaky_relu_slope,
                    self.dtype,
                    name=f"resblocks_{i * len(blocks) + j}",
                )(x, lengths)
            x = total / len(blocks)
        x = conv("conv_post", 1, jax.nn.leaky_relu(x, _LAST_SLOPE))
        return jnp.tanh(x[:, :, 0].astype(jnp.float32))


# Names of the buffers in PyTorch, and here.
_BUFFERS = {"mean": "mel_mean", "scale": "mel_scale"}
# The two forms in which releases hold normalised weights: length, direction.
_WEIGHT_NORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def without_weight_norm(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights of a release, each normalised weight g v / |v| multiplied out.

    The norm is over all axes but the first, also in transposed convolutions
    (Salimans and Kingma, arXiv 1602.07868).
    """
    plain = dict(weights)
    for length, direction in _WEIGHT_NORMS:
        for name in weights:
            if not name.endswith(f".{direction}"):
                continue
            module = name.removesuffix(f".{direction}")
            if f"{module}.{length}" not in plain:
                continue
            v = np.asarray(plain.pop(name))
            g = np.asarray(plain.pop(f"{module}.{length}"))
            norm = np.sqrt(
                np.square(v.astype(np.float64)).sum(
                    tuple(range(1, v.ndim)), keepdims=True
                )
            )
            plain[f"{module}.weight"] = (g * (v / norm)).astype(v.dtype)
    return plain


def from_torch(
    network: HifiGan,
    weights: Mapping[str, np.ndarray],
    source: str,
    dtype: DTypeLike | None = None,
) -> dict[str, Any]:
    """The variables of `network` that hold the weights of a release.

    Args:
        network: the vocoder.
        weights: the release's weights by name, with or without weight normalisation.
        source: where they come from, for error messages.
        dtype: of the parameters; by default as in the release.

    Raises:
        UserError: if a weight is missing, left over or of another shape.
    """
    plain = without_weight_norm(weights)
    for name, ours in _BUFFERS.items():
        if name in plain:
            plain[ours] = plain.pop(name)
        elif not network.config.normalize_before:  # older files leave them out
            fill = np.zeros if name == "mean" else np.ones
            plain[ours] = fill(network.config.model_in_dim, np.float32)
    return torch_weights.variables_from_torch(
        shapes(network), plain, source, dtype=dtype
    )


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a release that hold `variables`, without weight normalisation."""
    weights = torch_weights.variables_to_torch(variables)
    for name, ours in _BUFFERS.items():
        weights[name] = weights.pop(ours)
    return weights


def shapes(network: HifiGan) -> dict[str, Any]:
    """The variables of `network`, as `jax.ShapeDtypeStruct`s."""
    mels = jax.ShapeDtypeStruct((1, 1, network.config.model_in_dim), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), mels)
