"""Fields of `config.text_to_sound`."""

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration import generator_fields
from gptfl_jax.configuration.fields import Field
from gptfl_jax.errors import refused

FIELDS: dict[str, Field] = {
    "recordings": Field(
        "/usr/share/sonic-pi/samples",
        rules.TEXT,
        "folder of Sonic Pi's samples, to learn from beside strokes made by rule; "
        "empty: none",
    ),
    "variations": Field(12, rules.whole(1), "strokes made of each recording"),
    "strokes": Field(400, rules.whole(1), "strokes of each class made by rule"),
    "electronic": Field(
        0.25,
        rules.number(least=0, most=1),
        "share of these that a drum machine would make",
    ),
    **generator_fields.autoencoder((8, 16, 32, 64), latent_channels=8, steps=600),
    **generator_fields.denoiser(
        (48, 104), text_features=64, features_of="a token and of a prompt", steps=2000
    ),
    **generator_fields.vocoder(
        64, segment_frames=16, steps=1500, adversarial_steps=300, learning_rate=2e-3
    ),
    **generator_fields.every_phase("strokes", batch_size=32),
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
