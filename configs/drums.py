"""The small drums shipped as `gptfl_jax/assets/drums`.

    apt install sonic-pi-samples
    python -m train.generator --config=configs/drums.py --workdir=runs/drums

An AudioLDM of a few million parameters for strokes of drums and cymbals. The workdir
gets the model in the format of diffusers (`model/`), samples and curves; what it
reaches and how long it takes stands in `gptfl_jax/assets/drums/README.md`.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration


def get_config(arg: str = "") -> ConfigDict:
    """The shipped model's settings are the defaults of the section."""
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
