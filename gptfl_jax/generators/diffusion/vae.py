"""The autoencoder of Stable Diffusion (`AutoencoderKL`).

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv 2112.10752).
"""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gptfl_jax import nn
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.blocks import (
    Attention,
    Downsample,
    ResnetBlock,
    Upsample,
)
from gptfl_jax.released.model_config import ModelConfig

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig(ModelConfig):
    """Options of `AutoencoderKL`; the defaults are those of the PyTorch class.

    Attributes:
        sample_size: height and width of the images it was trained on.
        in_channels: channels of the images it reads.
        out_channels: channels of the images it makes.
        down_block_types: "DownEncoderBlock2D" for each resolution.
        up_block_types: "UpDecoderBlock2D" for each resolution.
        block_out_channels: channels a resolution, finest first.
        layers_per_block: residual blocks in the encoder, one less than in the decoder.
        latent_channels: channels of the latents.
        norm_num_groups: groups of the group norms.
        scaling_factor: latents are multiplied by it for the UNet.
        use_quant_conv: a 1x1 convolution after the encoder.
        use_post_quant_conv: a 1x1 convolution before the decoder.
        mid_block_add_attention: attention between the middle's residual blocks.
    """

    torch_class: ClassVar[str] = "AutoencoderKL"
    fixed: ClassVar = {
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "shift_factor": (None, 0),
    }
    without_effect: ClassVar = frozenset({"force_upcast"})

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        for name, known in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            expected = (known,) * len(self.block_out_channels)
            if getattr(self, name) != expected:
                raise UserError(
                    f"{name} = {getattr(self, name)}: VAEConfig takes {known!r} for "
                    "each resolution in block_out_channels"
                )

    def pictures_at_once(self, height: int, width: int) -> int:
        """Of so many pixels a picture, how many a CPU should encode or decode at once.

        More take their memory times as many, and hardly less time a picture: one of
        256 x 256 pixels with Stable Diffusion's 128 channels keeps all cores busy.
        """
        return max(1, 2**23 // (height * width * self.block_out_channels[0]))

    @property
    def factor(self) -> int:
        """Height of an image over the height of its latents."""
        return 2 ** (len(self.block_out_channels) - 1)


class _SpatialAttention(linen.Module):
    """Each position attends to all others, with one head and a residual path."""

    num_groups: int
    dtype: DTypeLike

    @linen.compact
    def __call__(self, inputs):
        norm = nn.GroupNorm(
            self.num_groups, _EPSILON, dtype=self.dtype, name="group_norm"
        )
        batch, height, width, channels = inputs.shape
        x = norm(inputs).reshape(batch, height * width, channels)
        # Attention's own parameters stand beside the norm's in the released files.
        attend = Attention(1, channels, use_bias=True, dtype=self.dtype, name="attend")
        linen.share_scope(self, attend)
        return inputs + attend(x).reshape(inputs.shape)


class _Stage(linen.Module):
    """A run of residual blocks, with attention after the first where `attention`."""

    features: int
    layers: int
    num_groups: int
    dtype: DTypeLike
    attention: bool = False
    resample: str = ""

    @linen.compact
    def __call__(self, x):
        for i in range(self.layers):
            if i == 1 and self.attention:
                x = _SpatialAttention(
                    self.num_groups, dtype=self.dtype, name="attentions_0"
                )(x)
            x = ResnetBlock(
                self.features,
                self.num_groups,
                _EPSILON,
                dtype=self.dtype,
                name=f"resnets_{i}",
            )(x)
        if self.resample == "down":
            x = Downsample((0, 1), dtype=self.dtype, name="downsamplers_0")(x)
        elif self.resample == "up":
            x = Upsample(dtype=self.dtype, name="upsamplers_0")(x)
        return x


class _Coder(linen.Module):
    """Encoder or decoder: the order of the stages differs, the pieces do not."""

    config: VAEConfig
    out_features: int
    down: bool
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        config = self.config
        features = config.block_out_channels

        def conv(name, size, x):
            module = nn.Conv(size, (3, 3), padding=1, dtype=self.dtype, name=name)
            return module(x)

        def middle(x):
            return _Stage(
                features[-1],
                2,
                config.norm_num_groups,
                self.dtype,
                attention=config.mid_block_add_attention,
                name="mid_block",
            )(x)

        x = conv("conv_in", features[0] if self.down else features[-1], x)
        if not self.down:
            x = middle(x)
        for i, size in enumerate(features if self.down else reversed(features)):
            last = i == len(features) - 1
            direction = "down" if self.down else "up"
            x = _Stage(
                size,
                config.layers_per_block + (not self.down),
                config.norm_num_groups,
                self.dtype,
                resample="" if last else direction,
                name=f"{direction}_blocks_{i}",
            )(x)
        if self.down:
            x = middle(x)
        norm = nn.GroupNorm(
            config.norm_num_groups, _EPSILON, dtype=self.dtype, name="conv_norm_out"
        )
        return conv("conv_out", self.out_features, jax.nn.silu(norm(x)))


class AutoencoderKL(linen.Module):
    """Images to a Gaussian over latents and back.

    Latents here are the autoencoder's own: the UNet's are `config.scaling_factor` times
    as large.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs.
    """

    config: VAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        channels = config.latent_channels
        self.encoder = _Coder(config, 2 * channels, down=True, dtype=self.dtype)
        self.decoder = _Coder(config, config.out_channels, down=False, dtype=self.dtype)
        if config.use_quant_conv:
            self.quant_conv = nn.Conv(2 * channels, (1, 1), dtype=self.dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(channels, (1, 1), dtype=self.dtype)

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> tuple[
        Float[Array, "batch small_height small_width latent"],
        Float[Array, "batch small_height small_width latent"],
    ]:
        """Mean and log-variance (clipped to [-30, 20]) of the latents of `images`.

        `images` are in [-1, 1].
        """
        moments = self.encoder(images.astype(self.dtype))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(
        self, latents: Float[Array, "batch height width latent"]
    ) -> Float[Array, "batch large_height large_width channels"]:
        """Images of `latents`, in [-1, 1] but for overshoot."""
        latents = latents.astype(self.dtype)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Reconstructs `images` from the mean of their latents."""
        return self.decode(self.encode(images)[0])


# Releases of 2022 name the projections of the attention otherwise.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def current_name(name: str) -> str:
    """The name that a weight of any release has in today's `diffusers`."""
    return re.sub(
        r"(?<=\.attentions\.0\.)(query|key|value|proj_attn)(?=\.)",
        lambda match: _OLD_NAMES[match[1]],
        name,
    )
