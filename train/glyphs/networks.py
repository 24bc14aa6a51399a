"""The networks of the small text-to-image generator, and its tokenizer."""

from typing import Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from gptfl_jax.generators.diffusion.solvers import DPMSolver
from gptfl_jax.generators.diffusion.unet import UNet2DCondition
from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks
from train import byte_pairs, diffusion
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
    return byte_pairs.token_table(tokenizer, all_prompts(), PROMPT_TOKENS)


def make_networks(
    settings: ConfigDict, tokenizer: Any, scaling_factor: float = 1.0
) -> Networks:
    """The three networks in the sizes of the config's section `text_to_image`."""
    vae_config = diffusion.vae_config(settings, IMAGE_SIZE, scaling_factor)
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
            diffusion.unet_config(
                settings,
                IMAGE_SIZE // vae_config.factor,
                # At the coarsest resolution prompts decide the whole digit.
                cross_attention_dim=settings.text_features,
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
