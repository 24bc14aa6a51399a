"""Fields of `config.text_to_image`."""

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field

FIELDS: dict[str, Field] = {
    "families": Field(
        (), rules.NAMES, "font families to render; empty: all that are installed"
    ),
    "pen_shapes_per_digit": Field(
        150, rules.whole(0), "shapes of a digit drawn from pen paths, beside the fonts"
    ),
    "vae_channels": Field(
        (8, 16, 32),
        rules.tuple_of(rules.whole(4), "whole numbers >= 4"),
        "channels of the autoencoder, finest resolution first",
    ),
    "latent_channels": Field(4, rules.whole(1), "channels of the latents"),
    "vae_steps": Field(900, rules.whole(1), "training steps of the autoencoder"),
    "vae_learning_rate": Field(
        2e-3, rules.number(above=0), "peak learning rate of the autoencoder"
    ),
    "kl_weight": Field(
        1e-3, rules.number(least=0), "weight of the latents' KL divergence, by element"
    ),
    "pictures": Field(
        60_000, rules.whole(1), "pictures rendered and encoded for the denoiser"
    ),
    "unet_channels": Field(
        (48, 96),
        rules.tuple_of(rules.whole(16), "whole numbers >= 16"),
        "channels of the denoiser, finest resolution first",
    ),
    "text_features": Field(96, rules.whole(8), "features of a token"),
    "text_layers": Field(2, rules.whole(1), "layers of the text encoder"),
    "unet_steps": Field(6200, rules.whole(1), "training steps of the denoiser"),
    "unet_learning_rate": Field(
        1.5e-3, rules.number(above=0), "peak learning rate of the denoiser"
    ),
    "empty_prompts": Field(
        0.1,
        rules.number(least=0, most=1),
        "share of prompts left empty, for classifier-free guidance",
    ),
    "ema_decay": Field(
        0.998, rules.number(least=0, most=1), "decay of the averaged weights"
    ),
    "batch_size": Field(64, rules.whole(1), "pictures a step, over all devices"),
    "checkpoint_every": Field(250, rules.whole(1), "steps between checkpoints"),
    "log_every": Field(25, rules.whole(1), "steps between lines of metrics.jsonl"),
    "test_samples": Field(
        5000, rules.whole(0), "samples for the quality measure at the end; 0: none"
    ),
    "test_steps": Field(12, rules.whole(1), "denoising steps of those samples"),
    "test_guidance_scale": Field(
        2.0, rules.number(least=0), "guidance of those samples"
    ),
}
