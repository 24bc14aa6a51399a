"""A case as `diffusers` and `transformers` run it."""

import itertools
import os
import pathlib
from collections.abc import Callable

import diffusers
import numpy as np
import torch
import transformers

from benchmarks.generators import cases
from benchmarks.generators.cases import Case
from gptfl_jax.released import hub

_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_KINDS = {
    "clip": transformers.CLIPTextModel,
    "t5": transformers.T5ForConditionalGeneration,
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "speecht5": transformers.SpeechT5ForTextToSpeech,
    "hifigan": transformers.SpeechT5HifiGan,
    "vocoder": transformers.SpeechT5HifiGan,
    "clap": transformers.ClapTextModelWithProjection,
}


def side(
    case: Case, batch: int, folder: pathlib.Path, dtype: str
) -> Callable[[], np.ndarray]:
    """What gives the outputs of a case, channels last; with all cores or the GPU."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # As JAX does without being told: products of float32 in TF32, the convolutions
    # that were the fastest in a trial.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    dtype = getattr(torch, dtype)
    given = {
        name: torch.from_numpy(_channels(value, -1, 1)).to(_DEVICE)
        for name, value in cases.inputs(case, batch).items()
    }
    given = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in given.items()
    }
    match case.model:
        case "sd":
            run = _pictures(folder, given, [""] * batch, 20, 7.5, dtype)
        case "" if case.name == "glyphs":
            prompts = cases.glyph_prompts(batch)
            assets = hub.ASSETS / "glyphs"
            run = _pictures(assets, given, prompts, cases.STEPS, 2.0, dtype)
        case "":
            run = _voices(batch, dtype)
        case _:
            kind = _KINDS[case.model.removeprefix("sound_")]
            model = kind.from_pretrained(folder, dtype=dtype).eval().to(_DEVICE)
            if case.model == "speecht5":
                _fix_dropout(model)
            run = _network(case, batch, model, given)
    return run


def peak_bytes() -> int | None:
    """The most that torch took of a GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() if _DEVICE == "cuda" else None


def _network(case, batch, model, given):
    def forward():
        match case.model:
            case "clip":
                return model(given["tokens"]).last_hidden_state
            case "clap":
                mask = (given["tokens"] != 1).long()
                embedded = model(given["tokens"], attention_mask=mask).text_embeds
                return torch.nn.functional.normalize(embedded, dim=-1)
            case "sound_unet":
                classes = given["classes"]
                return model(given["latents"], 500, None, class_labels=classes).sample
            case "t5":
                options = {"min_new_tokens": 16, "max_new_tokens": 16}
                tokens = model.generate(given["tokens"], do_sample=False, **options)
                return tokens[:, 1:]
            case "unet":
                return model(given["latents"], 500, given["context"]).sample
            case "vae" if "images" in given:
                return model.encode(given["images"]).latent_dist.mean
            case "vae" | "sound_vae":
                return model.decode(given["latents"]).sample
            case "speecht5":
                mels = model.generate_speech(
                    given["tokens"], given["speakers"], threshold=cases.OUT_OF_REACH
                )
                return mels.reshape(batch, -1, mels.shape[-1])
            case _:
                return model(given["mels"])

    return lambda: _channels(forward().float().cpu().numpy(), 1, -1)


def _channels(value: np.ndarray, source: int, target: int) -> np.ndarray:
    """Pictures with their channels moved."""
    if value.ndim != 4:
        return value if value.dtype.kind == "i" else value.astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(value, source, target), np.float32)


def _pictures(folder, given, prompts, steps, guidance, dtype):
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folder), dtype=dtype
    ).to(_DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": guidance}
    latents = given["latents"]

    def draw():
        made = pipeline(prompts, latents=latents, output_type="np", **options)
        return np.round(255 * made.images)

    return draw


def _voices(batch, dtype):
    folder = hub.ASSETS / "voices"
    model = transformers.SpeechT5ForTextToSpeech.from_pretrained(folder, dtype=dtype)
    vocoder = transformers.SpeechT5HifiGan.from_pretrained(
        folder / "vocoder", dtype=dtype
    )
    model, vocoder = model.eval().to(_DEVICE), vocoder.eval().to(_DEVICE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = torch.from_numpy(cases.voice_vectors(batch)).to(_DEVICE, dtype)
    _fix_dropout(model)

    def speak():
        words = list(cases.WORDS[:batch])
        texts = tokenizer(words, return_tensors="pt", padding=True).to(_DEVICE)
        waves, lengths = model.generate_speech(
            texts.input_ids,
            vectors,
            attention_mask=texts.attention_mask,
            vocoder=vocoder,
            return_output_lengths=True,
        )
        waves = waves.reshape(batch, -1).float().cpu().numpy()
        longest = int(np.argmax(lengths))
        return waves[longest, : lengths[longest]]

    return speak


def _fix_dropout(model):
    """Gives the decoder's prenet, whose dropout is always on, the masks of our side."""
    keep = torch.from_numpy(cases.keep(model.config)).to(_DEVICE)
    layers = itertools.cycle(range(keep.shape[1]))

    def dropout(x, p):
        return torch.where(keep[: x.shape[1], next(layers)], x, 0) / (1 - p)

    model.speecht5.decoder.prenet._consistent_dropout = dropout
