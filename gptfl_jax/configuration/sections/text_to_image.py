"""Fields of `config.text_to_image`."""

from gptfl_jax import rules
from gptfl_jax.configuration import generator_fields
from gptfl_jax.configuration.fields import Field

FIELDS: dict[str, Field] = {
    "families": Field(
        (), rules.NAMES, "font families to render; empty: all that are installed"
    ),
    "pen_shapes_per_digit": Field(
        150, rules.whole(0), "shapes of a digit drawn from pen paths, beside the fonts"
    ),
    **generator_fields.autoencoder((8, 16, 32), latent_channels=4, steps=900),
    "pictures": Field(
        60_000, rules.whole(1), "pictures rendered and encoded for the denoiser"
    ),
    **generator_fields.denoiser(
        (48, 96), text_features=96, features_of="a token", steps=6200
    ),
    **generator_fields.every_phase("pictures", batch_size=64),
    "test_samples": Field(
        5000, rules.whole(0), "samples for the quality measure at the end; 0: none"
    ),
    "test_steps": Field(12, rules.whole(1), "denoising steps of those samples"),
    "test_guidance_scale": Field(
        2.0, rules.number(least=0), "guidance of those samples"
    ),
}
