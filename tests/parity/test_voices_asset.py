"""The shipped voices, loaded by torch's `transformers`, speak the same waveforms."""

import pathlib

import jax
import numpy as np
import ported_models
import pytest
import torch
import torch_references
import transformers

import gptfl_jax
from gptfl_jax.generators.speech.speakers import read_speakers
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech

FOLDER = pathlib.Path(gptfl_jax.__file__).parent / "assets" / "voices"


@pytest.fixture(scope="module")
def models():
    loaded = []
    for kind, folder in (
        (transformers.SpeechT5ForTextToSpeech, FOLDER),
        (transformers.SpeechT5HifiGan, FOLDER / "vocoder"),
    ):
        network, info = kind.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        loaded.append(network.eval())
    return loaded


@pytest.mark.parametrize(
    ("word", "speaker"), [("seven", 3), ("zero", 250), ("cat", 100)]
)
def test_waveforms_are_the_same(models, word, speaker):
    model, vocoder = models
    pipeline = TextToSpeech.from_pretrained("voices")
    vector = read_speakers(FOLDER / "speakers").vectors[speaker]
    config = pipeline.model.config
    shape = config.speech_decoder_prenet_layers, config.speech_decoder_prenet_units
    keep = np.random.default_rng(speaker).random((1, 60, *shape)) < 0.5
    tokens = transformers.AutoTokenizer.from_pretrained(FOLDER)(word).input_ids
    assert tokens == pipeline.tokenizer([word]).input_ids[0]
    torch_references.give_dropout(model, keep[0])
    with torch.no_grad():
        theirs = model.generate_speech(
            torch.tensor([tokens]),
            torch.from_numpy(vector[None]),
            threshold=0.5,
            vocoder=vocoder,
        ).numpy()
    with jax.default_matmul_precision("highest"):
        waves, lengths = pipeline([word], vector, keep=keep, max_seconds=2.0)
    assert lengths[0] == len(theirs)
    assert 0.2 < len(theirs) / 16000 < 1.2  # a word
    assert np.abs(theirs).max() > 0.05  # not silence
    ours = np.asarray(waves)[0, : lengths[0]]
    assert ported_models.relative_error(ours, theirs) < 1e-3
