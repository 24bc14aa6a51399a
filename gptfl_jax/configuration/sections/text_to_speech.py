"""Fields of `config.text_to_speech`."""

from ml_collections import ConfigDict

from gptfl_jax import rules
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
    "vocoder_channels": Field(
        128, rules.whole(8), "channels of the vocoder before its first upsampling"
    ),
    "segment_frames": Field(
        32, rules.whole(4), "frames of the segments that the vocoder learns from"
    ),
    "vocoder_batch_size": Field(
        16, rules.whole(1), "segments a step, over all devices"
    ),
    "vocoder_steps": Field(
        3000, rules.whole(1), "training steps of the vocoder by spectra alone"
    ),
    "vocoder_learning_rate": Field(
        1e-3, rules.number(above=0), "peak learning rate of these steps"
    ),
    "adversarial_steps": Field(
        1500, rules.whole(0), "training steps of the vocoder against discriminators"
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
    "batch_size": Field(64, rules.whole(1), "clips a step, over all devices"),
    "checkpoint_every": Field(250, rules.whole(1), "steps between checkpoints"),
    "log_every": Field(25, rules.whole(1), "steps between lines of metrics.jsonl"),
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
