"""Networks, solvers and pipelines against live PyTorch."""

import functools
import itertools
import json

import diffusers
import jax
import numpy as np
import ported_models
import pytest
import torch
import torch_references
import transformers

from gptfl_jax.generators.diffusion.solvers import DDIM, LCM, DPMSolver
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion

CASES = torch_references.CASES


def named(prefix):
    return [name for name in CASES if name.startswith(prefix)]


@pytest.mark.parametrize("name", named("unet"))
def test_unet(name):
    reference = CASES[name]()
    output = ported_models.unet_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


@pytest.mark.parametrize("name", named("vae"))
def test_vae(name):
    reference = CASES[name]()
    outputs = ported_models.vae_outputs(reference)
    for key, output in zip(("mean", "log_variance", "decoded"), outputs, strict=True):
        assert ported_models.relative_error(output, reference[key]) < 1e-4


@pytest.mark.parametrize("name", named("clip_text"))
def test_clip_text(name):
    reference = CASES[name]()
    output = ported_models.clip_text_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


DPM_OPTIONS = (
    {},
    {"solver_type": "heun"},
    {"solver_order": 1},
    {"final_sigmas_type": "sigma_min"},
    {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"use_karras_sigmas": True},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(1e-4, 0.02, 1000).tolist()},
)
DDIM_OPTIONS = (
    {},
    {"clip_sample": False},
    {"clip_sample_range": 2.0},
    {"set_alpha_to_one": False, "steps_offset": 0},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing", "beta_schedule": "linear"},
)
LCM_OPTIONS = (
    {},
    {"original_inference_steps": 100},
    {"clip_sample": True, "clip_sample_range": 1.5},
    {"timestep_scaling": 0.001, "beta_schedule": "linear"},
)


@pytest.mark.parametrize(
    "kind, options, prediction_type",
    [
        (kind, options, prediction)
        for kind, choices in (
            ("DPMSolverMultistepScheduler", DPM_OPTIONS),
            ("DDIMScheduler", DDIM_OPTIONS),
            ("LCMScheduler", LCM_OPTIONS),
        )
        for options, prediction in itertools.product(
            choices, ("epsilon", "v_prediction", "sample")
        )
        # Without signal at the last level, noise does not determine the sample.
        if prediction == "v_prediction" or "rescale_betas_zero_snr" not in options
    ],
)
def test_solver(kind, options, prediction_type):
    for steps in (1, 4, 14, 15, 50):
        reference = torch_references.solver(
            kind, steps, prediction_type=prediction_type, **options
        )
        samples = ported_models.solver_samples(reference)
        assert ported_models.relative_error(samples, reference["samples"]) < 1e-4


def test_solver_steps_are_limited_like_the_reference():
    for kind, ours in (
        (diffusers.DPMSolverMultistepScheduler, DPMSolver),
        (diffusers.DDIMScheduler, DDIM),
        (diffusers.LCMScheduler, LCM),
    ):
        config = json.loads(json.dumps(dict(kind().config), default=str))
        assert (
            ours.from_json(config).to_json().items()
            <= (config | {"_class_name": kind.__name__}).items()
        )


@pytest.mark.parametrize("name", named("pipeline"))
def test_pipeline(name):
    reference = CASES[name]()
    for guidance_scale in (1.0, 7.5):
        images = ported_models.pipeline_images(reference, guidance_scale)
        expected = reference[f"images_{guidance_scale:g}"]
        assert images.std() > 20
        assert np.abs(images.astype(int) - expected).max() <= 1


@functools.cache
def tokenizer(folder):
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["<|startoftext|>", "<|endoftext|>", "ca", "cat</w>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=12,
        pad_token="<|endoftext|>",
    )


def torch_pipeline(name, folder):
    """The torch pipeline of a case, with a tokenizer, to be saved in its own format."""
    reference = CASES[name]()
    configs = reference["configs"]
    return diffusers.StableDiffusionPipeline(
        unet=torch_references.filled(
            diffusers.UNet2DConditionModel.from_config(configs["unet"])
        ),
        vae=torch_references.filled(
            diffusers.AutoencoderKL.from_config(configs["vae"])
        ),
        text_encoder=torch_references.filled(
            transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**configs["text_encoder"])
            )
        ),
        tokenizer=tokenizer(folder),
        scheduler=diffusers.DPMSolverMultistepScheduler.from_config(
            configs["scheduler"]
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ), reference["latents"]


PROMPTS = ["a cat", "dig", "cab of a big cat, which is longer than the encoder takes"]


def torch_images(pipe, latents):
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        PROMPTS,
        negative_prompt=["", "a", "cat"],
        latents=torch_references.channels_first(latents),
        num_inference_steps=4,
        guidance_scale=7.5,
        output_type="np",
    ).images
    return np.round(255 * images).astype(int)


def our_images(pipe, latents):
    with jax.default_matmul_precision("highest"):
        images = pipe(
            PROMPTS, negative_prompts=["", "a", "cat"], latents=latents, num_steps=4
        )
    return np.asarray(images).astype(int)


@pytest.mark.parametrize("name", named("pipeline"))
@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_folders_of_diffusers_load(name, form, tmp_path):
    pipe, latents = torch_pipeline(name, tmp_path)
    sizes = {"max_shard_size": "20KB"} if form == "sharded" else {}
    folder = tmp_path / "model"
    pipe.save_pretrained(folder, safe_serialization=form != "bin", **sizes)
    if form == "bin":  # today's transformers always writes safetensors
        for file in folder.glob("text_encoder/*.safetensors"):
            file.unlink()
        torch.save(
            pipe.text_encoder.state_dict(), folder / "text_encoder/pytorch_model.bin"
        )
    if form == "sharded":
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    ours = our_images(StableDiffusion.from_pretrained(folder), latents)
    assert np.abs(ours - torch_images(pipe, latents)).max() <= 1


@pytest.mark.parametrize("name", named("pipeline"))
def test_diffusers_loads_what_we_save(name, tmp_path):
    pipe, latents = torch_pipeline(name, tmp_path)
    pipe.save_pretrained(tmp_path / "torch")
    ours = StableDiffusion.from_pretrained(tmp_path / "torch")
    ours.save_pretrained(tmp_path / "jax")
    again, info = transformers.CLIPTextModel.from_pretrained(
        tmp_path / "jax" / "text_encoder", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "jax")
    assert isinstance(pipe.scheduler, diffusers.DPMSolverMultistepScheduler)
    difference = torch_images(pipe, latents) - our_images(ours, latents)
    assert np.abs(difference).max() <= 1


def test_ddim_pipeline(tmp_path):
    pipe, latents = torch_pipeline("pipeline_2x", tmp_path)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "torch")
    ours = StableDiffusion.from_pretrained(tmp_path / "torch", solver="ddim")
    difference = torch_images(pipe, latents) - our_images(ours, latents)
    assert np.abs(difference).max() <= 1


def noise_of(keys, schedule, shape):
    """What our loop adds at each step."""
    rows = []
    for timestep in schedule.timesteps:
        draw = [jax.random.normal(jax.random.fold_in(k, timestep), shape) for k in keys]
        rows.append(torch_references.channels_first(np.stack(draw)).numpy())
    return rows


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_latent_consistency_model(prediction_type, tmp_path):
    """The guidance scale goes into the UNet, which is evaluated once a step."""
    pipe, latents = torch_pipeline("pipeline_1x", tmp_path)
    options = CASES["pipeline_1x"]()["configs"]["unet"] | {"time_cond_proj_dim": 6}
    options.pop("_use_default_values", None)
    unet = diffusers.UNet2DConditionModel.from_config(options)
    config = dict(pipe.scheduler.config) | {"prediction_type": prediction_type}
    config.pop("_class_name")
    consistent = diffusers.LatentConsistencyModelPipeline(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=torch_references.filled(unet),
        scheduler=diffusers.LCMScheduler.from_config(config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    consistent.save_pretrained(tmp_path / "model")
    ours = StableDiffusion.from_pretrained(tmp_path / "model")
    assert ours.solver.prediction_type == prediction_type
    keys = jax.random.split(jax.random.key(1), len(PROMPTS))
    noise = noise_of(keys, ours.solver.schedule(4), latents.shape[1:])
    consistent.set_progress_bar_config(disable=True)
    images = {}
    for scale in (1.0, 8.0):
        with torch_references.given_noise(noise):
            theirs = consistent(
                PROMPTS,
                latents=torch_references.channels_first(latents),
                num_inference_steps=4,
                guidance_scale=scale,
                output_type="np",
            ).images
        with jax.default_matmul_precision("highest"):
            images[scale] = np.asarray(
                ours(
                    PROMPTS,
                    key=keys,
                    latents=latents,
                    num_steps=4,
                    guidance_scale=scale,
                )
            ).astype(int)
        difference = images[scale] - np.round(255 * theirs).astype(int)
        assert np.abs(difference).max() <= 1
    assert np.abs(images[1.0] - images[8.0]).max() > 5
    # What we write, torch reads as the same model.
    ours.save_pretrained(tmp_path / "jax")
    again = diffusers.LatentConsistencyModelPipeline.from_pretrained(tmp_path / "jax")
    assert again.unet.config.time_cond_proj_dim == 6
    assert isinstance(again.scheduler, diffusers.LCMScheduler)
