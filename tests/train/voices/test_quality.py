"""The reader of digits that measures the voices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.generators.speech.spectrogram import HOP
from train.voices import quality
from train.voices.corpus import make_corpus, spectrograms


@pytest.mark.long
def test_a_reader_learns_what_it_is_told():
    """Ten glides as digits: all read rightly after some epochs."""
    time = np.arange(6400) / 16000
    clips = []
    for i in range(200):
        start, end = 300 + 300 * (i % 10), 3000 - 250 * (i % 10)
        phase = 2 * np.pi * (start + (end - start) * time / 0.8) * time
        noise = 0.02 * np.random.default_rng(i).standard_normal(6400)
        clips.append((0.3 * np.sin(phase) + noise).astype(np.float32))
    inputs = quality.features_of(clips)
    labels = (np.arange(200) % 10).astype(np.int32)
    reader = quality.train_reader(inputs, labels, jax.random.key(0), 25)
    assert quality.accuracy(reader, inputs, labels) > 0.95


def test_copies_are_what_the_vocoder_makes_of_a_clip():
    """A vocoder that says how loud the lowest band is, for as long as it lasts."""

    def apply(variables, mels, lengths):
        inside = jnp.arange(mels.shape[1]) < lengths[:, None]
        return variables * jnp.repeat(mels[:, :, 0] * inside, HOP, 1)

    pipeline = types.SimpleNamespace(
        vocoder=types.SimpleNamespace(apply=apply), variables={"vocoder": 2.0}
    )
    tones = [np.sin(0.05 * np.arange(n)).astype(np.float32) / 4 for n in (700, 1500)]
    clips = make_corpus([tones], 8, 2)
    mels = spectrograms(clips)
    pairs = list(quality.copies(pipeline, clips))
    assert [len(ours) for ours, _ in pairs] == [6 * HOP, 8 * HOP]
    for i, (ours, theirs) in enumerate(pairs):
        frames = clips.frames[i]
        expected = 2 * np.repeat(mels[i, :frames, 0], HOP)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        np.testing.assert_allclose(theirs[: len(tones[i])], tones[i], atol=2**-15)
