"""The reader of digits that measures the voices."""

import jax
import numpy as np
import pytest

from train.voices import quality


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
