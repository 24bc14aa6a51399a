"""The smallest Stable Diffusion, with weights drawn at random, for quick tests."""

import jax
import jax.numpy as jnp
import numpy as np

from gptfl_jax.generators.diffusion.solvers import DPMSolver
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*LETTERS, *(f"{c}</w>" for c in LETTERS)]
VOCABULARY += ["<|startoftext|>", "<|endoftext|>"]
LENGTH = 8


def networks(dtype=jnp.float32):
    """The smallest networks: images are twice as large as their latents."""
    text = CLIPTextConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
    )
    unet = UNetConfig(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        sample_size=4,
        use_linear_projection=True,
    )
    vae = VAEConfig(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    return Networks(
        CLIPTextModel(text, dtype),
        UNet2DCondition(unet, dtype),
        AutoencoderKL(vae, dtype),
    )


def parameters():
    rng = np.random.RandomState(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape)
        name = path[-1].key
        if name == "kernel":
            values *= 1.5 / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name != "embedding":
            values = 0.1 * values + (name == "scale")
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, networks().shapes())


SOLVER = DPMSolver(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
)
