"""Fields that several of `train.generator`'s sections have, each with its defaults."""

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field


def autoencoder(
    channels: tuple[int, ...], latent_channels: int, steps: int
) -> dict[str, Field]:
    """Of an autoencoder of pictures or spectrograms."""
    return {
        "vae_channels": Field(
            channels,
            rules.tuple_of(rules.whole(4), "whole numbers >= 4"),
            "channels of the autoencoder, finest resolution first",
        ),
        "latent_channels": Field(
            latent_channels, rules.whole(1), "channels of the latents"
        ),
        "vae_steps": Field(steps, rules.whole(1), "training steps of the autoencoder"),
        "vae_learning_rate": Field(
            2e-3, rules.number(above=0), "peak learning rate of the autoencoder"
        ),
        "kl_weight": Field(
            1e-3,
            rules.number(least=0),
            "weight of the latents' KL divergence, by element",
        ),
    }


def denoiser(
    channels: tuple[int, ...], text_features: int, features_of: str, steps: int
) -> dict[str, Field]:
    """Of a text encoder and the denoiser of latents that it tells what to make.

    Args:
        channels: default of `unet_channels`.
        text_features: default of the field of this name.
        features_of: what has so many features.
        steps: default of `unet_steps`.
    """
    return {
        "unet_channels": Field(
            channels,
            rules.tuple_of(rules.whole(16), "whole numbers >= 16"),
            "channels of the denoiser, finest resolution first",
        ),
        "text_features": Field(
            text_features, rules.whole(8), f"features of {features_of}"
        ),
        "text_layers": Field(2, rules.whole(1), "layers of the text encoder"),
        "unet_steps": Field(steps, rules.whole(1), "training steps of the denoiser"),
        "unet_learning_rate": Field(
            1.5e-3, rules.number(above=0), "peak learning rate of the denoiser"
        ),
        "empty_prompts": Field(
            0.1,
            rules.number(least=0, most=1),
            "share of prompts left empty, for classifier-free guidance",
        ),
    }


def vocoder(
    channels: int,
    segment_frames: int,
    steps: int,
    adversarial_steps: int,
    learning_rate: float = 1e-3,
) -> dict[str, Field]:
    """Of a vocoder that learns by spectra, then against discriminators."""
    return {
        "vocoder_channels": Field(
            channels,
            rules.whole(8),
            "channels of the vocoder before its first upsampling",
        ),
        "segment_frames": Field(
            segment_frames,
            rules.whole(4),
            "frames of the segments that the vocoder learns from",
        ),
        "vocoder_batch_size": Field(
            16, rules.whole(1), "segments a step, over all devices"
        ),
        "vocoder_steps": Field(
            steps, rules.whole(1), "training steps of the vocoder by spectra alone"
        ),
        "vocoder_learning_rate": Field(
            learning_rate, rules.number(above=0), "peak learning rate of these steps"
        ),
        "adversarial_steps": Field(
            adversarial_steps,
            rules.whole(0),
            "training steps of the vocoder against discriminators",
        ),
        "adversarial_learning_rate": Field(
            3e-4, rules.number(above=0), "peak learning rate of these steps"
        ),
        "spectral_weight": Field(
            15.0, rules.number(least=0), "weight of the spectra in these steps"
        ),
    }


def every_phase(
    examples: str,
    batch_size: int,
    ema_decay: float = 0.998,
    checkpoint_every: int = 250,
    log_every: int = 25,
) -> dict[str, Field]:
    """Of all phases of a training.

    Args:
        examples: what a batch consists of.
        batch_size: default, as the others.
    """
    return {
        "ema_decay": Field(
            ema_decay, rules.number(least=0, most=1), "decay of the averaged weights"
        ),
        "batch_size": Field(
            batch_size, rules.whole(1), f"{examples} a step, over all devices"
        ),
        "checkpoint_every": Field(
            checkpoint_every, rules.whole(1), "steps between checkpoints"
        ),
        "log_every": Field(
            log_every, rules.whole(1), "steps between lines of metrics.jsonl"
        ),
    }
