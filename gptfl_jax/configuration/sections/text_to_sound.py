"""Fields of `config.text_to_sound`."""

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field
from gptfl_jax.errors import refused

FIELDS: dict[str, Field] = {
    "recordings": Field(
        "/usr/share/sonic-pi/samples",
        rules.TEXT,
        "folder of Sonic Pi's samples, to learn from beside strokes made by rule; "
        "empty: none",
    ),
    "variations": Field(16, rules.whole(1), "strokes made of each recording"),
    "strokes": Field(700, rules.whole(1), "strokes of each class made by rule"),
    "electronic": Field(
        0.25,
        rules.number(least=0, most=1),
        "share of these that a drum machine would make",
    ),
    "vae_channels": Field(
        (8, 16, 32, 64),
        rules.tuple_of(rules.whole(4), "whole numbers >= 4"),
        "channels of the autoencoder, finest resolution first",
    ),
    "latent_channels": Field(8, rules.whole(1), "channels of the latents"),
    "vae_steps": Field(1200, rules.whole(1), "training steps of the autoencoder"),
    "vae_learning_rate": Field(
        2e-3, rules.number(above=0), "peak learning rate of the autoencoder"
    ),
    "kl_weight": Field(
        1e-3, rules.number(least=0), "weight of the latents' KL divergence, by element"
    ),
    "unet_channels": Field(
        (64, 128),
        rules.tuple_of(rules.whole(16), "whole numbers >= 16"),
        "channels of the denoiser, finest resolution first",
    ),
    "text_features": Field(64, rules.whole(8), "features of a token and of a prompt"),
    "text_layers": Field(2, rules.whole(1), "layers of the text encoder"),
    "unet_steps": Field(4000, rules.whole(1), "training steps of the denoiser"),
    "unet_learning_rate": Field(
        1.5e-3, rules.number(above=0), "peak learning rate of the denoiser"
    ),
    "empty_prompts": Field(
        0.1,
        rules.number(least=0, most=1),
        "share of prompts left empty, for classifier-free guidance",
    ),
    "vocoder_channels": Field(
        64, rules.whole(8), "channels of the vocoder before its first upsampling"
    ),
    "segment_frames": Field(
        16, rules.whole(4), "frames of the segments that the vocoder learns from"
    ),
    "vocoder_batch_size": Field(
        16, rules.whole(1), "segments a step, over all devices"
    ),
    "vocoder_steps": Field(
        1500, rules.whole(1), "training steps of the vocoder by spectra alone"
    ),
    "vocoder_learning_rate": Field(
        1e-3, rules.number(above=0), "peak learning rate of these steps"
    ),
    "adversarial_steps": Field(
        800, rules.whole(0), "training steps of the vocoder against discriminators"
    ),
    "adversarial_learning_rate": Field(
        3e-4, rules.number(above=0), "peak learning rate of these steps"
    ),
    "spectral_weight": Field(
        15.0, rules.number(least=0), "weight of the spectra in these steps"
    ),
    "ema_decay": Field(
        0.998, rules.number(least=0, most=1), "decay of the averaged weights"
    ),
    "batch_size": Field(32, rules.whole(1), "strokes a step, over all devices"),
    "checkpoint_every": Field(250, rules.whole(1), "steps between checkpoints"),
    "log_every": Field(25, rules.whole(1), "steps between lines of metrics.jsonl"),
    "test_samples": Field(
        1200, rules.whole(0), "strokes for the quality measure at the end; 0: none"
    ),
    "test_solver_steps": Field(25, rules.whole(1), "denoising steps of those strokes"),
    "test_guidance_scale": Field(
        2.0, rules.number(least=0), "guidance of those strokes"
    ),
    "test_epochs": Field(15, rules.whole(1), "training of that measure's classifiers"),
    "test_folder": Field(
        "",
        rules.TEXT,
        "folder of Hydrogen's drum kits, to measure on recordings; empty: not measured",
    ),
}


def check(config: ConfigDict) -> None:
    """The rules that bind several fields."""
    sound = config.text_to_sound
    factor = 2 ** (len(sound.vae_channels) - 1)
    halvings = 2 ** (len(sound.unet_channels) - 1)
    if 32 % (factor * halvings):
        raise refused(
            "text_to_sound.vae_channels",
            sound.vae_channels,
            "so many that 32 frames can be halved once for each but the first of them "
            "and of config.text_to_sound.unet_channels",
        )
    if sound.segment_frames > 32:
        raise refused(
            "text_to_sound.segment_frames",
            sound.segment_frames,
            "at most the 32 frames of a stroke",
        )
