"""The shipped drums, loaded by torch's `diffusers`, sound the same."""

import pathlib

import diffusers
import jax
import numpy as np
import ported_models
import pytest
import torch

import gptfl_jax
from gptfl_jax.generators.sounds.audioldm import AudioLDM

FOLDER = pathlib.Path(gptfl_jax.__file__).parent / "assets" / "drums"
PROMPTS = ["bright short snare drum", "kick drum", "dark electronic hi-hat"]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_waveforms_are_the_same(guidance_scale):
    pipe = diffusers.AudioLDMPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipeline = AudioLDM.from_pretrained("drums")
    shape = 3, *pipeline.networks.latent_shape(1.024)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    theirs = pipe(
        PROMPTS,
        audio_length_in_s=1.024,
        num_inference_steps=5,
        guidance_scale=guidance_scale,
        latents=torch.from_numpy(latents).permute(0, 3, 1, 2),
        output_type="np",
    ).audios
    with jax.default_matmul_precision("highest"):
        ours = pipeline(
            PROMPTS,
            num_steps=5,
            guidance_scale=guidance_scale,
            duration_s=1.024,
            latents=latents,
        )
    assert theirs.shape == ours.shape == (3, 16_384)
    assert np.abs(theirs).max(1).min() > 0.05  # not silence
    assert ported_models.relative_error(np.asarray(ours), theirs) < 1e-3


def test_tokens_are_the_same():
    pipe = diffusers.AudioLDMPipeline.from_pretrained(FOLDER)
    ours = AudioLDM.from_pretrained("drums").tokenizer
    assert ours(PROMPTS).input_ids == pipe.tokenizer(PROMPTS).input_ids
