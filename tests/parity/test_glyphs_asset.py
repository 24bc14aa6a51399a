"""The shipped generator, loaded by torch's `diffusers`, makes the same pictures."""

import pathlib

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

import gptfl_jax
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from train.glyphs import prompts

FOLDER = pathlib.Path(gptfl_jax.__file__).parent / "assets" / "glyphs"

PROMPTS = [
    prompts.prompt(7, "handwritten", "thin", "slanted"),
    prompts.prompt(2, background="dark", framing="filling the frame"),
    prompts.prompt(5, "chalk", "thick"),
    "a digit",
]


@pytest.fixture(scope="module")
def reference():
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        FOLDER, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("num_steps, guidance_scale", [(12, 2.0), (25, 7.5), (10, 1.0)])
def test_pictures_are_the_same(reference, num_steps, guidance_scale):
    pipeline = StableDiffusion.from_pretrained(FOLDER)
    side = pipeline.networks.unet.config.sample_size
    latents = np.random.default_rng(0).standard_normal((len(PROMPTS), side, side, 4))
    latents = latents.astype(np.float32)
    with jax.default_matmul_precision("highest"):
        ours = pipeline(
            PROMPTS,
            latents=latents,
            num_steps=num_steps,
            guidance_scale=guidance_scale,
        )
    theirs = reference(
        PROMPTS,
        latents=torch.from_numpy(latents.transpose(0, 3, 1, 2)),
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        output_type="np",
    ).images
    theirs = np.round(255 * theirs)
    assert np.ptp(theirs) > 200  # pictures, not a blank
    assert np.abs(np.asarray(ours, np.float32) - theirs).max() <= 2


def test_pictures_in_four_steps_are_the_same():
    """With the LoRA weights that ship beside it, and no guidance."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        FOLDER, torch_dtype=torch.float32
    )
    theirs.load_lora_weights(FOLDER.parent / "glyphs-4-steps")
    theirs.set_progress_bar_config(disable=True)
    ours = StableDiffusion.from_pretrained(FOLDER, lora="glyphs-4-steps")
    latents = np.random.default_rng(0).standard_normal((4, 8, 8, 4), np.float32)
    with jax.default_matmul_precision("highest"):
        found = ours(PROMPTS, latents=latents, num_steps=4, guidance_scale=1.0)
    images = theirs(
        PROMPTS,
        latents=torch.from_numpy(latents.transpose(0, 3, 1, 2)),
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type="np",
    ).images
    images = np.round(255 * images)
    assert np.ptp(images) > 200
    assert np.abs(np.asarray(found, np.float32) - images).max() <= 2


def test_tokens_are_the_same(reference):
    ours = transformers.CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    assert isinstance(reference.tokenizer, transformers.CLIPTokenizer)
    for prompt in (*PROMPTS, "", "a Zebra, 12!"):
        tokens = reference.tokenizer(prompt)["input_ids"]
        assert ours(prompt)["input_ids"] == tokens
