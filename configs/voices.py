"""The small voices shipped as `gptfl_jax/assets/voices`.

    pip install 'gptfl-jax[voices]'
    apt install espeak-ng flite
    python -m train.generator --config=configs/voices.py --workdir=runs/voices

A SpeechT5 and a HiFi-GAN of a few million parameters for the 35 words of Speech
Commands, the ten digits among them. The workdir gets the model in the format of
transformers (`model/`), samples and curves; what it reaches and how long it takes
stands in `gptfl_jax/assets/voices/README.md`.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration


def get_config(arg: str = "") -> ConfigDict:
    """The shipped model's settings are the defaults of the section."""
    config = configuration.default_config("text_to_speech")
    return configuration.apply_arguments(
        config,
        arg,
        {
            "speech_steps": "text_to_speech.speech_steps",
            "vocoder_steps": "text_to_speech.vocoder_steps",
            "adversarial_steps": "text_to_speech.adversarial_steps",
            "batch": "text_to_speech.batch_size",
            "test_folder": "text_to_speech.test_folder",
        },
    )
