"""The drums shipped in `gptfl_jax/assets/drums`: they sound as they are called."""

import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import gptfl_jax
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from train.drums import networks
from train.drums.corpus import centroids_hz, durations_s

FOLDER = pathlib.Path(gptfl_jax.__file__).parent / "assets" / "drums"


def test_they_are_small_and_complete():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    parts = ("text_encoder", "unet", "vae", "vocoder")
    assert {path.parent.name for path in files} == {
        *("drums", "scheduler", "tokenizer"),
        *parts,
    }
    for part in parts:
        (file,) = (FOLDER / part).glob("*.safetensors")
        kinds = {w.dtype for w in load_file(file).values() if w.dtype.kind == "f"}
        assert kinds == {np.dtype(np.float16)}


def test_their_tokenizer_is_that_of_the_prompts():
    pipeline = AudioLDM.from_pretrained("drums")
    table = networks.token_table(pipeline.tokenizer)
    np.testing.assert_array_equal(
        table, networks.token_table(networks.make_tokenizer())
    )


@pytest.mark.long
def test_classes_and_words_are_heard():
    """Kicks are low, hi-hats high; crashes last; words change what they say."""
    pipeline = AudioLDM.from_pretrained("drums")
    texts = [
        *("kick drum", "hi-hat", "crash cymbal"),
        *("bright snare drum", "dark snare drum"),
        *("short hi-hat", "long hi-hat"),
    ]
    prompts = [text for text in texts for _ in range(16)]
    keys = jax.random.split(jax.random.key(0), len(prompts))
    waves = np.asarray(
        pipeline(prompts, key=keys, num_steps=20, guidance_scale=2.0, duration_s=1.024)
    )
    centroid = dict(zip(texts, _medians(centroids_hz(waves)), strict=True))
    duration = dict(zip(texts, _medians(durations_s(waves)), strict=True))
    # Measured: 369 and 5548 Hz, 0.86 and 0.20 s, 2246 and 1577 Hz, 0.61 and 0.09 s.
    assert centroid["kick drum"] < 700 < 3500 < centroid["hi-hat"]
    assert duration["crash cymbal"] > 3 * duration["kick drum"]
    assert centroid["bright snare drum"] > 1.3 * centroid["dark snare drum"]
    assert duration["long hi-hat"] > 3 * duration["short hi-hat"]


def _medians(values):
    return np.median(values.reshape(-1, 16), axis=1)
