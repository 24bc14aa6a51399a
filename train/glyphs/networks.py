"""The networks of the small text-to-image generator, and its tokenizer."""

from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from gptfl_jax.generators.diffusion.solvers import DPMSolver
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks
from train import byte_pairs
from train.glyphs.drawing import IMAGE_SIZE
from train.glyphs.prompts import all_prompts

PROMPT_TOKENS = 20  # the longest prompt has 16, with both ends 18


def prompt_tokenizer() -> Any:
    """A `CLIPTokenizer` with all bytes, and a token for each word of our prompts."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    words = sorted(set(" ".join(all_prompts()).replace(",", " ").split()))
    merges, made = byte_pairs.learn([*word[:-1], f"{word[-1]}</w>"] for word in words)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate([*vocabulary, *made, *ends])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=PROMPT_TOKENS
    )


def token_table(tokenizer: Any) -> Int[np.ndarray, "prompts tokens"]:
    """Tokens of `all_prompts()`, and of the empty prompt as the last row."""
    encoded = tokenizer(
        [*all_prompts(), ""],
        padding="max_length",
        max_length=PROMPT_TOKENS,
        truncation=True,
        return_tensors="np",
    )
    return encoded["input_ids"].astype(np.int32)


def make_networks(
    settings: ConfigDict, tokenizer: Any, scaling_factor: float = 1.0
) -> Networks:
    """The three networks in the sizes of the config's section `text_to_image`."""
    vae_channels = tuple(settings.vae_channels)
    unet_channels = tuple(settings.unet_channels)
    levels = len(unet_channels)
    # Attention only at the coarsest resolution: prompts decide the whole digit.
    down = ("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",)
    vae_config = VAEConfig(
        sample_size=IMAGE_SIZE,
        down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
        block_out_channels=vae_channels,
        latent_channels=settings.latent_channels,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
    )
    return Networks(
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.text_features,
                intermediate_size=4 * settings.text_features,
                num_hidden_layers=settings.text_layers,
                num_attention_heads=4,
                max_position_embeddings=PROMPT_TOKENS,
                projection_dim=settings.text_features,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        unet=UNet2DCondition(
            UNetConfig(
                sample_size=IMAGE_SIZE // vae_config.factor,
                in_channels=settings.latent_channels,
                out_channels=settings.latent_channels,
                down_block_types=down,
                mid_block_type=None,
                up_block_types=tuple(t.replace("Down", "Up") for t in down[::-1]),
                block_out_channels=unet_channels,
                layers_per_block=1,
                cross_attention_dim=settings.text_features,
                attention_head_dim=4,
                use_linear_projection=True,
                norm_num_groups=8,
            )
        ),
        vae=AutoencoderKL(vae_config),
    )


def make_solver() -> DPMSolver:
    """Stable Diffusion's noise levels, with v-prediction."""
    return DPMSolver(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,  # as in Stable Diffusion's files; without effect on "linspace"
    )
