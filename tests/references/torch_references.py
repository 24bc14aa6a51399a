"""PyTorch's side of the comparisons: outputs of diffusers and transformers.

`CASES` are functions that compute one reference each; tests/parity compares with them
live. Run as a program, in the environment of `pip install -e .[parity]`,

    python tests/references/torch_references.py

writes them beside this file, with the versions of the libraries inside, for the tests
that do without torch; names after it choose some. `python -m zipfile -l <file>.npz`
lists what a file holds.
"""

import gzip
import itertools
import json
import platform
import sys
from functools import partial
from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_lcm
from ported_models import FOLDER, T5_BEAMS, T5_GAIN, fill

VERSIONS = {
    "torch": torch.__version__,
    "diffusers": diffusers.__version__,
    "transformers": transformers.__version__,
    "numpy": np.__version__,
    "python": platform.python_version(),
}

# Small networks with every kind of block that the releases have.
_UNET = {
    "block_out_channels": (16, 32),
    "cross_attention_dim": 24,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_UNET_1X = _UNET | {"attention_head_dim": 4}
_UNET_2X = _UNET | {"attention_head_dim": (2, 4), "use_linear_projection": True}
_UNET_OTHER = {
    "block_out_channels": (8, 16, 16),
    "cross_attention_dim": 12,
    "sample_size": 10,
    "layers_per_block": (1, 2, 1),
    "transformer_layers_per_block": (1, 2, 1),
    "norm_num_groups": 4,
    "norm_eps": 1e-4,
    "attention_head_dim": (1, 2, 4),
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "out_channels": 6,
    "use_linear_projection": True,
}
_VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
}
_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
_VOCODER = {
    "model_in_dim": 6,
    "upsample_initial_channel": 16,
    "upsample_rates": (4, 4),
    "upsample_kernel_sizes": (8, 8),
    "resblock_kernel_sizes": (3, 7),
    "resblock_dilation_sizes": ((1, 3), (1, 2)),
}
_SPEECH = {
    "vocab_size": 20,
    "hidden_size": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "encoder_max_relative_position": 4,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 6,
    "speech_decoder_prenet_units": 8,
    "speaker_embedding_dim": 5,
    "speech_decoder_postnet_layers": 3,
    "speech_decoder_postnet_units": 8,
    "max_speech_positions": 150,
    "max_text_positions": 40,
}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights from `fill`, for inference."""
    weights = {
        name: torch.from_numpy(fill(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model.eval()


def shapes(model: torch.nn.Module) -> dict:
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def plain(config) -> dict:
    """A config as it stands in the model's file."""
    text = config.to_json_string() if hasattr(config, "to_json_string") else None
    return json.loads(text or json.dumps(dict(config), default=str))


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).contiguous().numpy()


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def normal(seed, *shape) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


@torch.no_grad()
def unet(options, height=8, width=8) -> dict:
    model = filled(diffusers.UNet2DConditionModel(**options))
    latents = normal(0, 2, height, width, model.config.in_channels)
    timesteps = np.array([3, 981])
    context = normal(1, 2, 5, model.config.cross_attention_dim)
    output = model(
        channels_first(latents), torch.tensor(timesteps), torch.tensor(context)
    ).sample
    return {
        "config": plain(model.config),
        "weights": shapes(model),
        "latents": latents,
        "timesteps": timesteps,
        "context": context,
        "output": channels_last(output),
    }


@torch.no_grad()
def vae(options) -> dict:
    model = filled(diffusers.AutoencoderKL(**options))
    images = normal(2, 2, 16, 8, 3)
    distribution = model.encode(channels_first(images)).latent_dist
    return {
        "config": plain(model.config),
        "weights": shapes(model),
        "images": images,
        "mean": channels_last(distribution.mean),
        "log_variance": channels_last(distribution.logvar),
        "decoded": channels_last(model.decode(distribution.mean).sample),
    }


@torch.no_grad()
def clip_text(options) -> dict:
    config = transformers.CLIPTextConfig(**options)
    model = filled(transformers.CLIPTextModel(config))
    tokens = np.random.RandomState(3).randint(0, config.vocab_size, (3, 12))
    output = model(torch.tensor(tokens)).last_hidden_state
    return {
        "config": plain(config),
        "weights": shapes(model),
        "tokens": tokens,
        "output": output.numpy(),
    }


def t5_model(options) -> tuple[transformers.T5ForConditionalGeneration, dict]:
    """A model, and the names and shapes of its weights without copies."""
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**options))
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if model.config.scale_decoder_outputs:
        copies.append("lm_head.weight")
    else:  # as the releases of version 1.1 have it
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    weights = {k: v for k, v in shapes(model).items() if k not in copies}
    filled = {name: torch.from_numpy(fill(name, v)) for name, v in weights.items()}
    for name in filled:
        if name.endswith((".o.weight", ".wo.weight")):
            filled[name] *= T5_GAIN
    model.load_state_dict(filled, strict=False)
    return model.eval(), weights


@torch.no_grad()
def t5(options) -> dict:
    model, weights = t5_model(options)
    random = np.random.RandomState(8)
    tokens = random.randint(2, model.config.vocab_size, (5, 150))
    mask = np.arange(150) < np.array([[150], [3], [20], [1], [9]])
    answers = random.randint(2, model.config.vocab_size, (5, 140))
    answers[:, 0] = model.config.decoder_start_token_id
    inputs = {
        "input_ids": torch.tensor(np.where(mask, tokens, 0)),
        "attention_mask": torch.tensor(mask).long(),
    }
    logits = model(**inputs, decoder_input_ids=torch.tensor(answers)).logits

    def generated(**options):
        rows = model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)
        rows = torch.nn.functional.pad(rows[:, 1:], (0, 13 - rows.shape[1])).numpy()
        # Beam search fills up with the end when the padding is token 0.
        ends = rows == model.config.eos_token_id
        rows[(np.cumsum(ends, axis=1) - ends) > 0] = 0
        return rows.reshape(len(tokens), -1, 12)

    return {
        "config": plain(model.config),
        "weights": weights,
        "tokens": inputs["input_ids"].numpy(),
        "mask": mask,
        "answers": answers,
        "logits": logits.numpy(),
        "greedy": generated(),
    } | {
        f"beam_{name}": generated(num_return_sequences=3, **options)
        for name, options in T5_BEAMS.items()
    }


def given_noise(noise):
    """Makes LCM's scheduler add this noise, a row a step, instead of drawing any."""
    rows = iter(noise)
    return mock.patch.object(
        scheduling_lcm,
        "randn_tensor",
        lambda shape, **_: torch.from_numpy(np.asarray(next(rows))).reshape(shape),
    )


def solver(kind, steps, **options) -> dict:
    """Samples after each step; the network's outputs are noise."""
    scheduler = getattr(diffusers, kind)(**_NOISE | options)
    scheduler.set_timesteps(steps)
    start, outputs = normal(4, 2, 3, 3, 2), normal(5, steps, 2, 3, 3, 2)
    noise = normal(6, steps, 2, 3, 3, 2)
    sample, samples = torch.from_numpy(start), []
    with given_noise(noise):
        for timestep, output in zip(scheduler.timesteps, outputs, strict=True):
            output = torch.from_numpy(output)
            sample = scheduler.step(output, timestep, sample).prev_sample
            samples.append(sample.numpy())
    return {
        "config": plain(scheduler.config) | {"_class_name": kind},
        "timesteps": scheduler.timesteps.numpy(),
        "start": start,
        "outputs": outputs,
        "noise": noise,
        "samples": np.stack(samples),
    }


@torch.no_grad()
def pipeline(unet_options, hidden_act, prediction_type, steps=5) -> dict:
    """A whole pipeline; its scheduler is replaced by DPM-Solver++ as users do."""
    networks = {
        "unet": diffusers.UNet2DConditionModel(**unet_options),
        "vae": diffusers.AutoencoderKL(**_VAE),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**_TEXT | {"hidden_act": hidden_act})
        ),
    }
    for network in networks.values():
        filled(network)
    # What a release of 2022 holds; today's defaults for other samplers are not in it.
    config = _NOISE | {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "trained_betas": None,
    }
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(config)
    pipe = diffusers.StableDiffusionPipeline(
        **networks,
        tokenizer=None,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    tokens = np.random.RandomState(6).randint(0, _TEXT["vocab_size"], (4, 12))
    # Row 0 is the empty prompt, the others are the prompts of the batch.
    embeddings = networks["text_encoder"](torch.tensor(tokens)).last_hidden_state
    latents = normal(7, len(tokens) - 1, 8, 8, 4)

    def images(guidance_scale):
        output = pipe(
            prompt_embeds=embeddings[1:],
            negative_prompt_embeds=embeddings[:1].repeat(len(tokens) - 1, 1, 1),
            latents=channels_first(latents),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="np",
        ).images
        return np.round(255 * output).astype(np.uint8)

    return {
        "configs": {name: plain(network.config) for name, network in networks.items()}
        | {"scheduler": config},
        "weights": {name: shapes(network) for name, network in networks.items()},
        "tokens": tokens,
        "latents": latents,
        "num_steps": np.array(steps),
        "images_1": images(1.0),
        "images_7.5": images(7.5),
    }


@torch.no_grad()
def vocoder(options, short=6) -> dict:
    model = filled(transformers.SpeechT5HifiGan(vocoder_config(options)))
    mels = normal(8, 2, 9, model.config.model_in_dim)
    return {
        "config": plain(model.config),
        "weights": shapes(model),
        "mels": mels,
        "waves": model(torch.from_numpy(mels)).numpy(),
        "short": np.array(short),
        "short_wave": model(torch.from_numpy(mels[0, :short])).numpy(),
    }


def vocoder_config(options) -> transformers.SpeechT5HifiGanConfig:
    return transformers.SpeechT5HifiGanConfig(**json.loads(json.dumps(options)))


def give_dropout(model: transformers.SpeechT5ForTextToSpeech, keep: np.ndarray) -> None:
    """Makes the dropout of the decoder's prenet keep what `keep` says.

    `keep` is [steps, layers, units]; the prenet sees all steps so far each time.
    """
    prenet, calls = model.speecht5.decoder.prenet, itertools.count()

    def dropout(x, p):
        layer = next(calls) % keep.shape[1]
        kept = torch.from_numpy(keep[: x.shape[1], layer])
        return torch.where(kept, x, 0) / (1 - p)

    prenet._consistent_dropout = dropout


@torch.no_grad()
def speech(threshold) -> dict:
    """Texts spoken one at a time, as the padding of a batch changes the reference."""
    model = filled(
        transformers.SpeechT5ForTextToSpeech(transformers.SpeechT5Config(**_SPEECH))
    )
    hifigan = filled(transformers.SpeechT5HifiGan(vocoder_config(_VOCODER)))
    random = np.random.RandomState(9)
    speakers = random.standard_normal((5, _SPEECH["speaker_embedding_dim"]))
    speakers = speakers.astype(np.float32)
    lengths = [4, 14, 5, 9, 1]
    tokens = np.full((len(lengths), max(lengths)), model.config.pad_token_id)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = random.randint(2, _SPEECH["vocab_size"], length)
    keep = random.rand(len(tokens), 150, 2, 8) < 0.5
    mels, waves = [], []
    for row, length, speaker, kept in zip(tokens, lengths, speakers, keep, strict=True):
        give_dropout(model, kept)
        mel = model.generate_speech(
            torch.from_numpy(row[None, :length]),
            torch.from_numpy(speaker[None]),
            threshold=threshold,
        )
        mels.append(mel.numpy())
        waves.append(hifigan(mel).numpy())
    return {
        "configs": {"model": plain(model.config), "vocoder": plain(hifigan.config)},
        "weights": {"model": shapes(model), "vocoder": shapes(hifigan)},
        "threshold": np.array(threshold),
        "tokens": tokens,
        "speakers": speakers,
        "keep": keep,
        "mels": np.concatenate(mels),
        "mel_lengths": np.array([len(mel) for mel in mels]),
        "waves": np.concatenate(waves),
        "wave_lengths": np.array([len(wave) for wave in waves]),
    }


CASES = {
    "unet_1x": partial(unet, _UNET_1X),
    "unet_2x": partial(unet, _UNET_2X),
    # Sizes that do not halve evenly, depths and heads that differ by resolution.
    "unet_other": partial(unet, _UNET_OTHER, height=7, width=10),
    "vae": partial(vae, _VAE),
    "vae_deep": partial(
        vae,
        _VAE
        | {
            "block_out_channels": (8, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 3,
            "up_block_types": ("UpDecoderBlock2D",) * 3,
            "layers_per_block": 2,
            "latent_channels": 3,
        },
    ),
    "clip_text_1x": partial(clip_text, _TEXT | {"hidden_act": "quick_gelu"}),
    "clip_text_2x": partial(clip_text, _TEXT | {"hidden_act": "gelu"}),
    "t5_1_0": partial(t5, T5 | {"eos_token_id": 6}),
    "t5_1_1": partial(
        t5,
        T5
        | {
            "eos_token_id": 24,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            # No more than the encoder's: its cache has as many.
            "num_layers": 3,
            "num_decoder_layers": 2,
        },
    ),
    "solver_dpm_epsilon": partial(solver, "DPMSolverMultistepScheduler", 14),
    "solver_dpm_velocity": partial(
        solver, "DPMSolverMultistepScheduler", 25, prediction_type="v_prediction"
    ),
    "solver_ddim_epsilon": partial(solver, "DDIMScheduler", 10, clip_sample=True),
    "solver_ddim_velocity": partial(
        solver,
        "DDIMScheduler",
        20,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
    ),
    "vocoder": partial(vocoder, _VOCODER),
    # AudioLDM's windows, which do not fit their rates.
    "vocoder_odd": partial(
        vocoder,
        _VOCODER
        | {
            "upsample_rates": (5, 2),
            "upsample_kernel_sizes": (16, 8),
            "resblock_kernel_sizes": (3,),
            "resblock_dilation_sizes": ((1, 3, 5),),
            "normalize_before": False,
            "leaky_relu_slope": 0.2,
        },
    ),
    # Ends that are reached at once, early, late, and not before the longest length.
    "speech": partial(speech, 0.95),
    "speech_later": partial(speech, 0.98),
    "pipeline_1x": partial(pipeline, _UNET_1X, "quick_gelu", "epsilon"),
    "pipeline_2x": partial(pipeline, _UNET_2X, "gelu", "v_prediction"),
}

# The files of the releases themselves, for their weights' names and shapes.
_REAL_UNET = {
    "act_fn": "silu",
    "block_out_channels": (320, 640, 1280, 1280),
    "center_input_sample": False,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_REAL_VAE = {
    "act_fn": "silu",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_REAL_TEXT = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
REAL_CONFIGS = {
    "stable_diffusion_1_5": {
        "unet": _REAL_UNET
        | {"attention_head_dim": 8, "cross_attention_dim": 768, "sample_size": 64},
        "vae": _REAL_VAE | {"sample_size": 512},
        "text_encoder": _REAL_TEXT
        | {
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
        },
    },
    "stable_diffusion_2_1": {
        "unet": _REAL_UNET
        | {
            "attention_head_dim": (5, 10, 20, 20),
            "cross_attention_dim": 1024,
            "dual_cross_attention": False,
            "num_class_embeds": None,
            "only_cross_attention": False,
            "sample_size": 96,
            "upcast_attention": True,
            "use_linear_projection": True,
        },
        "vae": _REAL_VAE | {"sample_size": 768},
        "text_encoder": _REAL_TEXT
        | {
            "hidden_act": "gelu",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 23,
            "projection_dim": 512,
        },
    },
}


def real_weights(release: str) -> dict:
    """Config, and weights' names and shapes, of each network of a release."""
    configs = REAL_CONFIGS[release]
    with torch.device("meta"):
        networks = {
            "unet": diffusers.UNet2DConditionModel(**configs["unet"]),
            "vae": diffusers.AutoencoderKL(**configs["vae"]),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**configs["text_encoder"])
            ),
        }
    return {
        name: {"config": configs[name], "weights": shapes(network)}
        for name, network in networks.items()
    }


def saved_tensors() -> dict:
    """Every kind of tensor that a file of weights may hold."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "float32": base,
        "transposed": base.T,
        "part": base[1:, ::2],
        "parameter": torch.nn.Parameter(base.clone()),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    for dtype in ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8"):
        tensors[dtype] = base.to(getattr(torch, dtype))
    tensors["uint8"], tensors["bool"] = base.to(torch.uint8), base > 5
    return tensors


def record(cases: dict) -> None:
    """Writes the cases that the command line names, or all."""
    versions = json.dumps(VERSIONS)
    for name, case in cases.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        arrays = {
            key: value if isinstance(value, np.ndarray) else json.dumps(value)
            for key, value in case().items()
        }
        np.savez_compressed(FOLDER / f"{name}.npz", versions=versions, **arrays)


def main() -> None:
    record(CASES)
    if len(sys.argv) > 1:
        return
    for name in REAL_CONFIGS:
        content = {"versions": VERSIONS} | real_weights(name)
        data = gzip.compress(json.dumps(content).encode(), mtime=0)
        (FOLDER / f"{name}.json.gz").write_bytes(data)
    for name, zipped in (("saved_by_torch", True), ("saved_by_old_torch", False)):
        torch.save(
            saved_tensors(),
            FOLDER / f"{name}.bin",
            _use_new_zipfile_serialization=zipped,
        )


if __name__ == "__main__":
    main()
