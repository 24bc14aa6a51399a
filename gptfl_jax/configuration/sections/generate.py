"""Fields of `config.generate`."""

from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field
from gptfl_jax.errors import ConfigError

_MOST_SAMPLES = 1_000_000


def _samples_per_class(value: Any) -> bool:
    if isinstance(value, dict | ConfigDict):
        # A ConfigDict takes no dots in names; those of classes do without.
        return bool(value) and all(
            rules.NAME.valid(name) and "." not in name and _samples(value[name])
            for name in value.keys()
        )
    return _samples(value)


def _samples(value: Any) -> bool:
    if rules.is_whole(value):
        return 1 <= value <= _MOST_SAMPLES
    if not isinstance(value, str):
        return False
    if value.endswith("x"):
        try:
            return 0 < float(value[:-1]) <= _MOST_SAMPLES
        except ValueError:
            return False
    is_count = value.isascii() and value.isdigit() and len(value) < 10
    return is_count and 1 <= int(value) <= _MOST_SAMPLES


FIELDS: dict[str, Field] = {
    "model": Field(
        "glyphs",
        rules.NAME,
        "images: a Stable Diffusion shipped here, a diffusers folder or a hub id; "
        "speech: a SpeechT5, likewise, as voices or microsoft/speecht5_tts; sounds: "
        "an AudioLDM, as cvssp/audioldm",
        common=True,
    ),
    "lora": Field(
        "",
        rules.TEXT,
        "images: LoRA weights that are added to the model's, in a format of diffusers: "
        "a .safetensors file, a folder or a hub id, or owner/name:file; empty: none",
    ),
    "lora_scale": Field(1.0, rules.number(), "how much of the LoRA weights is added"),
    "samples_per_class": Field(
        "3x",
        rules.Rule(
            "a whole number from 1 to a million, or such a multiple of the real "
            "count as 3x, or one of these by class, as {'cat': 300, 'dog': '2x'}, "
            "whose dots are left out",
            _samples_per_class,
        ),
        "samples a class: a number, or a multiple of the real training set's count; or "
        "one of these for each class by name",
        common=True,
    ),
    "solver": Field(
        "auto",
        rules.one_of("auto", "dpmsolver++", "ddim", "lcm"),
        "images, sounds: the sampler of the diffusion model; lcm is for latent "
        "consistency models, in 4 to 8 steps; auto: lcm where the model's own "
        "scheduler is that, else dpmsolver++ for images and ddim for sounds",
    ),
    "num_steps": Field(
        25, rules.whole(1), "denoising steps of the solver", common=True
    ),
    "guidance_scale": Field(
        7.5,
        rules.number(least=0),
        "classifier-free guidance; 1: none",
        common=True,
    ),
    "guidance_choices": Field(
        (),
        rules.tuple_of(rules.number(least=0), "numbers >= 0"),
        "guidance scales to draw from, one a sample, in place of guidance_scale",
    ),
    "negative_prompt": Field(
        "", rules.TEXT, "what pictures and sounds should not be like"
    ),
    "vocoder": Field(
        "",
        rules.TEXT,
        "speech: the HiFi-GAN, a folder or a hub id; empty: the model's own (its "
        "folder vocoder/), or microsoft/speecht5_hifigan where it has none",
    ),
    "speaker_vectors": Field(
        "",
        rules.TEXT,
        "speech: the speakers' voices, a .npy or .zip file, a folder or a hub id; "
        "empty: the model's own (its folder speakers/), or "
        "Matthijs/cmu-arctic-xvectors where it has none",
    ),
    "speakers": Field(
        (),
        rules.tuple_of(rules.whole(0), "whole numbers >= 0"),
        "speech: numbers of the speaker vectors to draw from; empty: 0 alone, or "
        "all where prompts.method is multi_speaker",
    ),
    "stop_threshold": Field(
        0.5, rules.number(above=0), "speech ends where its probability to is this high"
    ),
    "duration_s": Field(
        5.0, rules.number(above=0), "seconds of a clip of sounds", common=True
    ),
    "max_seconds": Field(5.0, rules.number(above=0), "longest clip of speech"),
    "trim_db": Field(
        40.0,
        rules.number(least=0),
        "speech: ends of a clip this many decibels below its loudest part are "
        "cut off; 0: they stay",
    ),
    "snr_db": Field(
        (),
        rules.tuple_of(rules.Rule("a number", rules.is_number), "numbers"),
        "speech: signal-to-noise ratios in decibels to draw from, one a clip, for "
        "white noise; empty: none",
    ),
    "height": Field(0, rules.whole(0), "pixels; 0: the model's own"),
    "width": Field(0, rules.whole(0), "pixels; 0: the model's own"),
    "batch_size": Field(
        64, rules.whole(1), "samples at once, over all devices", common=True
    ),
    "dtype": Field(
        "float32",
        rules.one_of("float32", "bfloat16", "float16"),
        "precision of the networks; float16, of images and sounds, leaves what turns "
        "latents into them in float32",
    ),
    "preview_per_class": Field(
        10, rules.whole(0), "samples of a class on preview.png; 0: no preview"
    ),
}


def check(config: ConfigDict) -> None:
    """The rules that bind several fields."""
    generate = config.generate
    if (generate.height == 0) != (generate.width == 0):
        raise ConfigError(
            f"config.generate.height = {generate.height} with config.generate.width"
            f" = {generate.width}: takes both or neither"
        )
