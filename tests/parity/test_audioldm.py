"""AudioLDM's networks and pipeline against live PyTorch."""

import diffusers
import jax
import numpy as np
import ported_models
import pytest
import small_audioldm
import torch
import torch_audioldm

from gptfl_jax import planning
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from gptfl_jax.generators.sounds.clap_text import CLAPTextConfig, CLAPTextModel
from gptfl_jax.generators.sounds.networks import Networks
from gptfl_jax.generators.speech import hifigan

CASES = torch_audioldm.CASES


def test_clap_text():
    reference = CASES["clap_text"]()
    output = ported_models.clap_text_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


def test_unet():
    reference = CASES["unet_audioldm"]()
    output = ported_models.unet_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


def test_vae():
    reference = CASES["vae_mel"]()
    outputs = ported_models.vae_outputs(reference)
    for key, output in zip(("mean", "log_variance", "decoded"), outputs, strict=True):
        assert ported_models.relative_error(output, reference[key]) < 1e-4


def test_vocoder():
    options = torch_audioldm.SMALL["vocoder"]
    reference = torch_audioldm.torch_references.vocoder(options)
    waves = ported_models.vocoder_waves(reference)
    assert ported_models.relative_error(waves, reference["waves"]) < 1e-4


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_pipeline(guidance_scale):
    reference = CASES["pipeline_audioldm"]()
    waves = ported_models.audioldm_waves(reference, guidance_scale)
    expected = reference[f"waves_{guidance_scale:g}"]
    assert ported_models.relative_error(waves, expected) < 1e-3


PROMPTS = ["a dog", "rain", "a sound of rain in the field at night"]


def torch_pipeline(folder):
    """A pipeline with every part, as a release's folder holds it."""
    options = torch_audioldm.SMALL
    options = options | {
        "text_encoder": options["text_encoder"]
        | {"vocab_size": len(small_audioldm.VOCABULARY)}
    }
    parts = torch_audioldm.networks(options)
    parts = {n: torch_audioldm.fill_network(part) for n, part in parts.items()}
    scheduler = diffusers.DDIMScheduler(**torch_audioldm.SCHEDULER)
    folder.mkdir()
    tokenizer = small_audioldm.tokenizer(folder)
    tokenizer.model_max_length = 24
    pipe = diffusers.AudioLDMPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def torch_waves(pipe, latents):
    return pipe(
        PROMPTS,
        negative_prompt=["", "a", "dog"],
        latents=torch_audioldm.channels_first(latents),
        num_inference_steps=4,
        guidance_scale=2.5,
        audio_length_in_s=11 * 20 / 16_000,
    ).audios


def our_waves(pipe, latents):
    with jax.default_matmul_precision("highest"):
        waves = pipe(
            PROMPTS,
            negative_prompts=["", "a", "dog"],
            latents=latents,
            num_steps=4,
            duration_s=11 * 20 / 16_000,
        )
    return np.asarray(waves)


def test_folders_go_both_ways(tmp_path):
    pipe = torch_pipeline(tmp_path / "tokenizer")
    latents = torch_audioldm.normal(7, len(PROMPTS), 6, 4, 4)
    pipe.save_pretrained(tmp_path / "torch")
    ours = AudioLDM.from_pretrained(tmp_path / "torch")
    expected = torch_waves(pipe, latents)
    waves = our_waves(ours, latents)
    assert ported_models.relative_error(waves, expected) < 1e-3
    ours.save_pretrained(tmp_path / "jax")
    again = diffusers.AudioLDMPipeline.from_pretrained(tmp_path / "jax")
    again.set_progress_bar_config(disable=True)
    again = torch_waves(again, latents)
    assert ported_models.relative_error(waves, again) < 1e-3


def test_the_release_has_as_many_parameters_as_ours():
    with torch.device("meta"):
        theirs = torch_audioldm.networks(torch_audioldm.RELEASE)
    ours = Networks(
        CLAPTextModel(CLAPTextConfig()),
        UNet2DCondition(
            UNetConfig.from_json(torch_audioldm.plain(theirs["unet"].config))
        ),
        AutoencoderKL(VAEConfig.from_json(torch_audioldm.plain(theirs["vae"].config))),
        hifigan.HifiGan(
            hifigan.HifiGanConfig.from_json(
                torch_audioldm.plain(theirs["vocoder"].config)
            )
        ),
    )
    shapes = ours.shapes()
    shapes["vocoder"] = shapes["vocoder"]["params"]
    for name, network in theirs.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        assert planning.parameters(shapes[name]) == count
