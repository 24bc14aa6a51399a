"""The conditional denoising UNet of latent diffusion (`UNet2DConditionModel`).

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv 2112.10752), with the options of Stable Diffusion 1.x and 2.x and of AudioLDM
(Liu et al., arXiv 2301.12503), whose condition is a vector beside the time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen, traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gptfl_jax import nn
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.blocks import (
    Attention,
    Downsample,
    ResnetBlock,
    Upsample,
    per_level,
    sinusoidal_embedding,
)
from gptfl_jax.released.model_config import ModelConfig

_ATTENTION_BLOCKS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig(ModelConfig):
    """Options of `UNet2DCondition`; the defaults are those of Stable Diffusion 1.x.

    Attributes:
        sample_size: height and width of the latents it was trained on.
        in_channels: channels of the latents.
        out_channels: channels of the prediction.
        down_block_types: a block type a resolution, finest first: "DownBlock2D" or
            "CrossAttnDownBlock2D".
        mid_block_type: "UNetMidBlock2DCrossAttn", or None for no middle block.
        up_block_types: coarsest first: "UpBlock2D" or "CrossAttnUpBlock2D".
        block_out_channels: channels a resolution, finest first.
        layers_per_block: residual blocks on the way down, one less than on the way up.
        class_embed_type: "simple_projection" where a matrix projects a vector that
            describes the sample to the size of the time embedding; None without one.
        class_embeddings_concat: the projected vector stands beside the time embedding
            instead of being added to it.
        projection_class_embeddings_input_dim: features of that vector.
        cross_attention_dim: features of the context, one for all or one a resolution;
            without a context no effect.
        attention_head_dim: the NUMBER of attention heads (the name is an old mistake of
            the file format).
        transformer_layers_per_block: depth of each transformer.
        use_linear_projection: whether transformers project by a matrix (2.x) or by a
            1x1 convolution (1.x).
        norm_num_groups: groups of the group norms.
        norm_eps: epsilon of the group norms outside the transformers.
        flip_sin_to_cos: cosines before sines in the time embedding.
        freq_shift: of the time embedding's frequencies.
        upcast_attention: attention logits in float32, which here they always are.
        time_cond_proj_dim: features of the embedded guidance scale that a latent
            consistency model takes beside the time; None where it takes none.
    """

    torch_class: ClassVar[str] = "UNet2DConditionModel"
    fixed: ClassVar = {
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None,),
        "addition_time_embed_dim": (None,),
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_scale_factor": (1,),
        "num_attention_heads": (None,),
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_dim": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    }
    without_effect: ClassVar = frozenset({"addition_embed_type_num_heads", "dropout"})

    sample_size: int | tuple[int, int] = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    class_embed_type: str | None = None
    class_embeddings_concat: bool | None = False
    projection_class_embeddings_input_dim: int | None = None
    cross_attention_dim: int | tuple[int, ...] = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int | float = 0
    upcast_attention: bool = False
    time_cond_proj_dim: int | None = None

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name, known in (
            ("down_block_types", ("DownBlock2D", "CrossAttnDownBlock2D")),
            ("up_block_types", ("UpBlock2D", "CrossAttnUpBlock2D")),
            ("mid_block_type", ("UNetMidBlock2DCrossAttn", None)),
            ("class_embed_type", ("simple_projection", None)),
        ):
            types = getattr(self, name)
            for block in types if isinstance(types, tuple) else (types,):
                if block not in known:
                    raise UserError(f"{name} = {block!r}: UNetConfig takes {known}")
        for name in (
            "down_block_types",
            "up_block_types",
            "layers_per_block",
            "cross_attention_dim",
            "attention_head_dim",
            "transformer_layers_per_block",
        ):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise UserError(
                    f"{name} = {value}: takes one value for each of the {levels} "
                    "resolutions in block_out_channels"
                )
        has_classes = self.class_embed_type is not None
        if has_classes != (self.projection_class_embeddings_input_dim is not None):
            raise UserError(
                f"class_embed_type = {self.class_embed_type!r} beside "
                "projection_class_embeddings_input_dim = "
                f"{self.projection_class_embeddings_input_dim}: UNetConfig takes both "
                "or neither"
            )
        if self.class_embeddings_concat and not has_classes:
            raise UserError(
                "class_embeddings_concat = True: UNetConfig takes it beside "
                "class_embed_type = 'simple_projection'"
            )


class TransformerBlock(linen.Module):
    """Self-attention, attention to the context, and a gated feed-forward layer."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        inputs: Float[Array, "batch length features"],
        context: Float[Array, "batch keys context_features"] | None,
    ) -> Float[Array, "batch length features"]:
        def norm(name, x):
            return nn.LayerNorm(1e-5, dtype=self.dtype, name=name)(x)

        features = inputs.shape[-1]
        x = inputs
        for index, keys in ((1, None), (2, context)):
            attend = Attention(
                self.heads, features, dtype=self.dtype, name=f"attn{index}"
            )
            x += attend(norm(f"norm{index}", x), keys)
        return x + FeedForward(dtype=self.dtype, name="ff")(norm("norm3", x))


class FeedForward(linen.Module):
    """Value times the exact GELU of a gate (GEGLU, arXiv 2002.05202), then a matrix."""

    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self, inputs: Float[Array, "batch length features"]
    ) -> Float[Array, "batch length features"]:
        features = inputs.shape[-1]
        x = _GatedProjection(4 * features, dtype=self.dtype, name="net_0")(inputs)
        return nn.Dense(features, dtype=self.dtype, name="net_2")(x)


class _GatedProjection(linen.Module):
    features: int
    dtype: DTypeLike

    @linen.compact
    def __call__(self, inputs):
        x = nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(inputs)
        value, gate = jnp.split(x, 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class Transformer(linen.Module):
    """Transformer blocks over the positions of an image, with a residual path."""

    config: UNetConfig
    heads: int
    depth: int
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        context: Float[Array, "batch keys context_features"] | None,
    ) -> Float[Array, "batch height width channels"]:
        batch, height, width, channels = inputs.shape
        linear = self.config.use_linear_projection

        def project(name, x):
            # The same product: only the weights differ in form.
            if linear:
                return nn.Dense(channels, dtype=self.dtype, name=name)(x)
            return nn.Conv(channels, (1, 1), dtype=self.dtype, name=name)(x)

        norm = nn.GroupNorm(
            self.config.norm_num_groups, 1e-6, dtype=self.dtype, name="norm"
        )
        x = project("proj_in", norm(inputs)).reshape(batch, height * width, channels)
        for i in range(self.depth):
            block = TransformerBlock(
                self.heads, dtype=self.dtype, name=f"transformer_blocks_{i}"
            )
            x = block(x, context)
        return inputs + project("proj_out", x.reshape(inputs.shape))


class _Level(linen.Module):
    """What the blocks of one resolution have in common."""

    config: UNetConfig
    level: int
    dtype: DTypeLike

    @property
    def features(self):
        return self.config.block_out_channels[self.level]

    def resnet(self, index, x, time_embedding):
        block = ResnetBlock(
            self.features,
            self.config.norm_num_groups,
            self.config.norm_eps,
            dtype=self.dtype,
            name=f"resnets_{index}",
        )
        return block(x, time_embedding)

    def transformer(self, index, x, context):
        levels = len(self.config.block_out_channels)
        block = Transformer(
            self.config,
            per_level(self.config.attention_head_dim, levels)[self.level],
            per_level(self.config.transformer_layers_per_block, levels)[self.level],
            dtype=self.dtype,
            name=f"attentions_{index}",
        )
        return block(x, context)


class _DownBlock(_Level):
    @linen.compact
    def __call__(self, x, time_embedding, context):
        levels = len(self.config.block_out_channels)
        skips = []
        for i in range(per_level(self.config.layers_per_block, levels)[self.level]):
            x = self.resnet(i, x, time_embedding)
            if self.config.down_block_types[self.level] in _ATTENTION_BLOCKS:
                x = self.transformer(i, x, context)
            skips.append(x)
        if self.level < levels - 1:
            x = Downsample((1, 1), dtype=self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class _MidBlock(_Level):
    @linen.compact
    def __call__(self, x, time_embedding, context):
        x = self.resnet(0, x, time_embedding)
        x = self.transformer(0, x, context)
        return self.resnet(1, x, time_embedding)


class _UpBlock(_Level):
    @linen.compact
    def __call__(self, x, skips, time_embedding, context):
        levels = len(self.config.block_out_channels)
        layers = per_level(self.config.layers_per_block, levels)[self.level]
        block_type = self.config.up_block_types[levels - 1 - self.level]
        for i in range(layers + 1):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.resnet(i, x, time_embedding)
            if block_type in _ATTENTION_BLOCKS:
                x = self.transformer(i, x, context)
        if self.level > 0:
            # The next skip's size, not twice this one: odd sizes were halved upward.
            size = skips[-1].shape[1:3]
            x = Upsample(dtype=self.dtype, name="upsamplers_0")(x, size)
        return x


class _TimeEmbedding(linen.Module):
    features: int
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x, condition):
        if condition is not None:
            project = nn.Dense(
                x.shape[-1], use_bias=False, dtype=self.dtype, name="cond_proj"
            )
            x = x + project(condition.astype(self.dtype))
        x = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(x)
        x = jax.nn.silu(x)
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(x)


def guidance_embedding(
    scale: Float[Array, " batch"], features: int
) -> Float[Array, "batch {features}"]:
    """The guidance scale as a latent consistency model takes it beside the time.

    Sines and cosines of 1000 (scale - 1), as of a noise level (arXiv 2310.04378,
    section 4.3, whose w is the scale less 1).
    """
    return sinusoidal_embedding(
        1000 * (scale - 1), features, cosine_first=False, frequency_shift=1
    )


def project_context(
    params: Mapping[str, Any],
    context: Float[Array, "batch keys context_features"],
    dtype: DTypeLike = jnp.float32,
) -> dict[str, Any]:
    """Keys and values of every attention to the context, which no step changes.

    Given to `network.apply` as the collection "context" beside "params", they spare it
    these products.
    """
    context = context.astype(dtype)
    projected = {
        path[:-1]: context @ kernel.astype(dtype)
        for path, kernel in traverse_util.flatten_dict(params).items()
        if path[-3:-2] == ("attn2",) and path[-2] in ("to_k", "to_v")
    }
    return traverse_util.unflatten_dict(projected)


class UNet2DCondition(linen.Module):
    """Predicts noise, velocity or the clean latents from noisy latents and a condition.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs.
    """

    config: UNetConfig
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self,
        latents: Float[Array, "batch height width in_channels"],
        timesteps: Float[Array, "#batch"] | Int[Array, "#batch"],
        context: Float[Array, "batch keys context_features"] | None,
        classes: Float[Array, "batch class_features"] | None = None,
        time_condition: Float[Array, "batch condition_features"] | None = None,
    ) -> Float[Array, "batch height width out_channels"]:
        """Denoises one step.

        Args:
            latents: noisy latents.
            timesteps: step of the noise schedule, 0 to 999 in the released models; one
                a sample or one for all.
            context: the prompt's embedding; None makes the second attention of each
                transformer block one to itself.
            classes: the vector that describes the sample, where the config has a
                `class_embed_type`.
            time_condition: of `guidance_embedding`, where the config has a
                `time_cond_proj_dim`.

        Raises:
            ValueError: classes or the time condition are missing, or are none of the
                config's.
        """
        config = self.config
        if (time_condition is None) != (config.time_cond_proj_dim is None):
            raise ValueError(
                f"time_cond_proj_dim = {config.time_cond_proj_dim!r}: takes "
                + ("no" if time_condition is not None else "a")
                + " time condition"
            )
        if (classes is None) != (config.class_embed_type is None):
            raise ValueError(
                f"class_embed_type = {config.class_embed_type!r}: takes "
                + ("no classes" if classes is not None else "classes")
            )
        features, levels = config.block_out_channels, len(config.block_out_channels)
        time_embedding = sinusoidal_embedding(
            timesteps.astype(jnp.float32),
            features[0],
            cosine_first=config.flip_sin_to_cos,
            frequency_shift=config.freq_shift,
        )
        time_embedding = _TimeEmbedding(
            4 * features[0], dtype=self.dtype, name="time_embedding"
        )(time_embedding.astype(self.dtype), time_condition)
        if classes is not None:
            project = nn.Dense(
                4 * features[0], dtype=self.dtype, name="class_embedding"
            )
            projected = project(classes.astype(self.dtype))
            if config.class_embeddings_concat:
                time_embedding = jnp.broadcast_to(time_embedding, projected.shape)
                time_embedding = jnp.concatenate([time_embedding, projected], axis=-1)
            else:
                time_embedding += projected
        if context is not None:
            context = context.astype(self.dtype)

        x = nn.Conv(features[0], (3, 3), padding=1, dtype=self.dtype, name="conv_in")(
            latents.astype(self.dtype)
        )
        skips = [x]
        for level in range(levels):
            block = _DownBlock(
                config, level, dtype=self.dtype, name=f"down_blocks_{level}"
            )
            x, new_skips = block(x, time_embedding, context)
            skips += new_skips
        if config.mid_block_type is not None:
            block = _MidBlock(config, levels - 1, dtype=self.dtype, name="mid_block")
            x = block(x, time_embedding, context)
        for i, level in enumerate(reversed(range(levels))):
            block = _UpBlock(config, level, dtype=self.dtype, name=f"up_blocks_{i}")
            x = block(x, skips, time_embedding, context)
        x = nn.GroupNorm(
            config.norm_num_groups,
            config.norm_eps,
            dtype=self.dtype,
            name="conv_norm_out",
        )(x)
        return nn.Conv(
            config.out_channels, (3, 3), padding=1, dtype=self.dtype, name="conv_out"
        )(jax.nn.silu(x))
