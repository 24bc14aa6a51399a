"""The networks of the small drums, and their tokenizer."""

import re
from typing import Any

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from gptfl_jax.generators.diffusion.solvers import DDIM
from gptfl_jax.generators.diffusion.unet import UNet2DCondition
from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.sounds.clap_text import CLAPTextConfig, CLAPTextModel
from gptfl_jax.generators.sounds.networks import Networks
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ
from train import byte_pairs, diffusion
from train.drums.prompts import all_prompts
from train.drums.spectrogram import NUM_MELS

PROMPT_TOKENS = 16  # the longest prompt has 6 words, with both ends 8

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def make_tokenizer() -> Any:
    """A `RobertaTokenizer` with all bytes, and a token for each word of our prompts.

    As in RoBERTa, a word behind a space is another token than one at the beginning.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizer

    words = sorted(set(re.findall("[a-z]+", " ".join(all_prompts()))))
    letters = sorted(ByteLevel.alphabet())
    merges, made = byte_pairs.learn([*words, *(["Ġ", *word] for word in words)])
    names = [*_SPECIAL, *letters, *made, "<mask>"]
    return RobertaTokenizer(
        vocab={token: number for number, token in enumerate(names)},
        merges=merges,
        model_max_length=PROMPT_TOKENS,
    )


def token_table(tokenizer: Any) -> Int32[np.ndarray, "prompts tokens"]:
    """Tokens of `all_prompts()`, and of the empty prompt as the last row."""
    return byte_pairs.token_table(tokenizer, all_prompts(), PROMPT_TOKENS)


def make_networks(
    settings: ConfigDict, tokenizer: Any, scaling_factor: float = 1.0
) -> Networks:
    """The four networks in the sizes of the config's section `text_to_sound`."""
    vae_config = diffusion.vae_config(
        settings, NUM_MELS, scaling_factor, in_channels=1, out_channels=1
    )
    text_config = CLAPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.text_features,
        intermediate_size=4 * settings.text_features,
        num_hidden_layers=settings.text_layers,
        num_attention_heads=4,
        # Positions are counted from behind that of padding.
        max_position_embeddings=tokenizer.pad_token_id + 1 + PROMPT_TOKENS,
        projection_dim=settings.text_features,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet_config = diffusion.unet_config(
        settings,
        NUM_MELS // vae_config.factor,
        cross_attention_dim=tuple(settings.unet_channels),
        class_embed_type="simple_projection",
        class_embeddings_concat=True,
        projection_class_embeddings_input_dim=settings.text_features,
    )
    vocoder_config = HifiGanConfig(
        model_in_dim=NUM_MELS,
        sampling_rate=SAMPLE_RATE_HZ,
        upsample_initial_channel=settings.vocoder_channels,
        upsample_rates=(8, 8, 8),
        upsample_kernel_sizes=(16, 16, 16),
        resblock_kernel_sizes=(3, 7),
        resblock_dilation_sizes=((1, 3), (1, 3)),
    )
    return Networks(
        CLAPTextModel(text_config),
        UNet2DCondition(unet_config),
        AutoencoderKL(vae_config),
        HifiGan(vocoder_config),
    )


def make_solver() -> DDIM:
    """AudioLDM's noise levels, with v-prediction."""
    return DDIM(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
