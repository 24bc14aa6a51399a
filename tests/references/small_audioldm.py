"""The smallest AudioLDM, with weights drawn at random, for quick tests."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from gptfl_jax.generators.diffusion.solvers import DDIM
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.sounds.clap_text import CLAPTextConfig, CLAPTextModel
from gptfl_jax.generators.sounds.networks import Networks
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig

# RoBERTa's first words, then letters; a space is "Ġ".
VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ"]
VOCABULARY += "abcdefghijklmnopqrstuvwxyz"
SOLVER = DDIM(
    beta_start=0.0015,
    beta_end=0.0195,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)


def networks(dtype=jnp.float32):
    """The smallest networks; a latent is two frames of 20 samples at 16 kHz."""
    text = CLAPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=34,
        projection_dim=6,
    )
    unet = UNetConfig(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=(8,),
        norm_num_groups=4,
        class_embed_type="simple_projection",
        class_embeddings_concat=True,
        projection_class_embeddings_input_dim=6,
    )
    vae = VAEConfig(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    vocoder = HifiGanConfig(
        model_in_dim=4,
        upsample_initial_channel=8,
        upsample_rates=(20,),
        upsample_kernel_sizes=(40,),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
        normalize_before=False,
    )
    return Networks(
        CLAPTextModel(text, dtype),
        UNet2DCondition(unet, dtype),
        AutoencoderKL(vae, dtype),
        HifiGan(vocoder, dtype),
    )


def parameters():
    rng = np.random.RandomState(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        name = path[-1].key
        if name == "kernel":
            values *= 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name != "embedding":
            values = 0.1 * values + (name in ("scale", "mel_scale"))
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, networks().shapes())


def tokenizer(folder):
    """RoBERTa's tokenizer of single letters, from files that it writes to a folder."""
    # Deferred: it takes seconds to import.
    import transformers

    words = {word: number for number, word in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.RobertaTokenizer.from_pretrained(folder, model_max_length=512)
