"""The rows of the table, and what both sides are given."""

from typing import NamedTuple

import numpy as np

from gptfl_jax.generators.speech.speakers import read_speakers
from gptfl_jax.released import hub
from train.glyphs import prompts

SPEAKERS = 512  # Numbers of a speaker vector.
FRAMES = 200  # Of a spectrogram, 3.2 s.
# Sigmoids of two frames never add up to it: every word runs to its longest.
OUT_OF_REACH = 3.0
WORDS = ("backward", "bed", "bird", "cat", "dog", "down", "eight", "five") * 2
STEPS = 15
# Largest deviation on a GPU, as root mean squares, over the outputs.
ROUNDED = 0.1


class Case(NamedTuple):
    """A row of the table for each batch size."""

    name: str
    text: str
    model: str
    """Of `random_models`; empty where a shipped one is used."""
    batches: tuple[int, ...] = (1, 2, 4)
    tolerance: float = 1e-3
    """Largest difference of the outputs over the largest output."""
    on_gpu: bool = False
    """Whether only a GPU is fast enough."""


CASES = {
    case.name: case
    for case in (
        Case("clip", "CLIP's text encoder, 77 tokens", "clip"),
        Case("t5", "T5's encoder and 16 tokens of answer", "t5"),
        Case("unet32", "UNet step, 32x32 latents", "unet"),
        Case("unet64", "UNet step, 64x64 latents", "unet"),
        Case("encode256", "VAE encoder, 256 px", "vae"),
        Case("encode512", "VAE encoder, 512 px", "vae"),
        Case("decode256", "VAE decoder, 256 px", "vae"),
        Case("decode512", "VAE decoder, 512 px", "vae"),
        Case("speecht5", "SpeechT5, 100 steps", "speecht5", (1, 2, 4, 16)),
        Case("hifigan", "HiFi-GAN, 200 frames", "hifigan"),
        Case("clap", "AudioLDM's text tower, 32 tokens", "clap"),
        Case("sound_unet", "AudioLDM's UNet step, 5 s", "sound_unet"),
        Case("sound_decode", "AudioLDM's VAE decoder, 5 s", "sound_vae"),
        Case("vocoder", "AudioLDM's vocoder, 5 s", "vocoder", (1, 2)),
        # Pixels: whole numbers from 0 to 255.
        Case("glyphs", "glyphs, 15 steps", "", (1, 2, 4, 128), 2.5 / 255),
        Case("voices", "voices, whole words", "", (1, 2, 4, 16), 1e-2),
        Case("sd", "Stable Diffusion 2.1, 512 px, 20 steps", "sd", (1, 4), on_gpu=True),
    )
}


def inputs(case: Case, batch: int) -> dict[str, np.ndarray]:
    """Random numbers of the shapes that the case takes, channels last."""
    rng = np.random.default_rng(0)
    side = int("".join(filter(str.isdigit, case.name)) or 0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    match case.name:
        case "sd":
            return {"latents": normal(batch, 64, 64, 4)}
        case "clip":
            return {"tokens": rng.integers(0, 49408, (batch, 77))}
        case "t5":
            return {"tokens": rng.integers(2, 32000, (batch, 64))}
        case "unet32" | "unet64":
            latents = normal(batch, side, side, 4)
            return {"latents": latents, "context": normal(batch, 77, 1024)}
        case "encode256" | "encode512":
            return {"images": rng.uniform(-1, 1, (batch, side, side, 3))}
        case "decode256" | "decode512":
            return {"latents": normal(batch, side // 8, side // 8, 4)}
        case "speecht5":
            tokens = rng.integers(4, 80, (batch, 10))
            return {"tokens": tokens, "speakers": normal(batch, SPEAKERS)}
        case "hifigan":
            return {"mels": normal(batch, FRAMES, 80)}
        case "clap":  # three words and padding
            words = rng.integers(3, 50265, (batch, 5))
            return {"tokens": np.pad(words, ((0, 0), (0, 27)), constant_values=1)}
        case "sound_unet":
            return {"latents": normal(batch, 125, 16, 8), "classes": normal(batch, 512)}
        case "sound_decode":
            return {"latents": normal(batch, 125, 16, 8)}
        case "vocoder":
            return {"mels": normal(batch, 500, 64)}
        case "glyphs":
            return {"latents": normal(batch, 8, 8, 4)}
        case _:
            return {}


def keep(config) -> np.ndarray:
    """Which units the prenet keeps: [steps, layers, units]."""
    shape = config.speech_decoder_prenet_layers, config.speech_decoder_prenet_units
    return np.random.default_rng(1).random((1000, *shape)) < 0.5


def voice_vectors(batch: int) -> np.ndarray:
    """Vectors of so many speakers of the shipped voices."""
    return read_speakers(hub.ASSETS / "voices" / "speakers").vectors[:batch]


def glyph_prompts(batch: int) -> list[str]:
    """Prompts of digits in turn."""
    return [prompts.prompt(i % 10, "handwritten") for i in range(batch)]
