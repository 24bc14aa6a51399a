"""Fields of `config.text_to_speech`."""

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration import generator_fields
from gptfl_jax.configuration.fields import Field
from gptfl_jax.errors import refused

FIELDS: dict[str, Field] = {
    "words": Field((), rules.NAMES, "words to learn; empty: the 35 of Speech Commands"),
    "engines": Field(
        ("espeak-ng", "flite", "hibari"), rules.NAMES, "synthesizers that speak them"
    ),
    "max_frames": Field(
        48,
        rules.whole(2),
        "longer clips are left out; a frame is 16 ms; a multiple of reduction_factor",
    ),
    "reduction_factor": Field(
        4, rules.whole(1), "frames that the speech model makes in one step"
    ),
    "features": Field(192, rules.whole(4), "features of the speech model's layers"),
    "encoder_layers": Field(3, rules.whole(1), "layers of its text encoder"),
    "decoder_layers": Field(4, rules.whole(1), "layers of its speech decoder"),
    "postnet_features": Field(
        128, rules.whole(1), "channels of the convolutions that refine spectrograms"
    ),
    "speaker_features": Field(64, rules.whole(1), "numbers of a speaker's vector"),
    "speech_steps": Field(12000, rules.whole(1), "training steps of the speech model"),
    "speech_learning_rate": Field(
        1e-3, rules.number(above=0), "peak learning rate of the speech model"
    ),
    **generator_fields.vocoder(
        128, segment_frames=32, steps=3000, adversarial_steps=1500
    ),
    **generator_fields.every_phase("clips", batch_size=64),
    "test_samples": Field(
        3000, rules.whole(0), "digits for the quality measure at the end; 0: none"
    ),
    "test_epochs": Field(15, rules.whole(1), "training of that measure's classifiers"),
    "test_folder": Field(
        "", rules.TEXT, "folder of FSDD, to measure on recordings; empty: not measured"
    ),
}


def check(config: ConfigDict) -> None:
    """The rules that bind several fields."""
    speech = config.text_to_speech
    if speech.max_frames % speech.reduction_factor:
        raise refused(
            "text_to_speech.max_frames",
            speech.max_frames,
            "a multiple of config.text_to_speech.reduction_factor = "
            f"{speech.reduction_factor}",
        )
    if speech.segment_frames > speech.max_frames:
        raise refused(
            "text_to_speech.segment_frames",
            speech.segment_frames,
            f"at most config.text_to_speech.max_frames = {speech.max_frames}",
        )
