"""A small AudioLDM for strokes of drums and cymbals.

    apt install sonic-pi-samples
    python -m train.generator --config=configs/drums.py --workdir=runs/drums

It learns from strokes made by rule and from Sonic Pi's samples (CC0). The workdir gets
the model in the format of diffusers (`model/`), samples and curves, and with
`test_folder=/usr/share/hydrogen/data` how well a classifier that has heard only the
model knows Hydrogen's drum kits (`quality.json`). `configs/drumkits.py` federates these
kits.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration


def get_config(arg: str = "") -> ConfigDict:
    """The settings are the defaults of the section."""
    config = configuration.default_config("text_to_sound")
    return configuration.apply_arguments(
        config,
        arg,
        {
            "recordings": "text_to_sound.recordings",
            "vae_steps": "text_to_sound.vae_steps",
            "unet_steps": "text_to_sound.unet_steps",
            "vocoder_steps": "text_to_sound.vocoder_steps",
            "adversarial_steps": "text_to_sound.adversarial_steps",
            "batch": "text_to_sound.batch_size",
            "test_folder": "text_to_sound.test_folder",
        },
    )
