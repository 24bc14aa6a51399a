"""The small digit generator shipped as `gptfl_jax/assets/glyphs`.

    pip install 'gptfl-jax[fonts]'
    python -m train.generator --config=configs/glyphs.py --workdir=runs/glyphs

A Stable Diffusion of a few million parameters for 32x32 digits. The workdir gets the
model in diffusers format (`model/`), its sample sheets and curves; what it reaches and
how long it takes stands in `gptfl_jax/assets/glyphs/README.md`.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration


def get_config(arg: str = "") -> ConfigDict:
    """The shipped model's settings are the defaults of the section."""
    config = configuration.default_config("text_to_image")
    return configuration.apply_arguments(
        config,
        arg,
        {
            "vae_steps": "text_to_image.vae_steps",
            "unet_steps": "text_to_image.unet_steps",
            "batch": "text_to_image.batch_size",
        },
    )
