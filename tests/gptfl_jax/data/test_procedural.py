"""Pictures and sounds drawn by rule."""

import numpy as np
import pytest

from gptfl_jax.data import audio, procedural
from gptfl_jax.data.datasets import Dataset, Sounds, Source
from gptfl_jax.errors import UserError


def test_points_lie_on_the_attractor():
    """Halving towards the corners of a triangle draws Sierpinski's: in binary digits
    of two coordinates no place has a one in both."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    rule = procedural.System(
        np.tile(np.eye(2) / 2, (3, 1, 1)), corners / 2, np.full(3, 1 / 3)
    )
    x = procedural.points(rule, 999, np.random.default_rng(0))
    assert x.shape == (999, 2)
    digits = np.floor(x * 2**8).astype(int)
    assert (digits[:, 0] & digits[:, 1] == 0).all()
    # As much in each third, by the odds.
    share = [np.mean(x[:, 0] > 0.5), np.mean(x[:, 1] > 0.5)]
    np.testing.assert_allclose(share, 1 / 3, atol=0.06)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(channels):
    made = procedural.pictures(3, 4, 8, channels, seed=1)
    assert made.inputs.shape == (12, 8, 8, channels) and made.inputs.dtype == np.uint8
    np.testing.assert_array_equal(made.labels, np.repeat([0, 1, 2], 4))
    # A picture depends on its class and number, not on the others.
    np.testing.assert_array_equal(
        procedural.pictures(2, 2, 8, channels, seed=1, first=2).inputs[2:],
        made.inputs[6:8],
    )
    assert (
        procedural.pictures(1, 4, 8, channels, seed=2).inputs != made.inputs[:4]
    ).any()
    if channels == 1:
        # Of one rule they are more alike than of different ones.
        x = made.inputs.reshape(3, 4, -1).astype(float)
        between = np.linalg.norm(x.mean(1)[:, None] - x.mean(1)[None], axis=-1)
        within = np.linalg.norm(x - x.mean(1, keepdims=True), axis=-1)
        assert within.mean() < between[~np.eye(3, dtype=bool)].mean()
        assert (x.max(-1) == 255).all()


def test_sounds_take_the_form_of_a_source():
    settings = audio.FeatureSettings(
        sample_rate_hz=4000, num_mels=8, fft_size=128, hop=40
    )
    train = Dataset(
        (np.zeros((2, 30, 8), np.float32), np.array([30, 20], np.int32)),
        np.zeros(2, np.int32),
        ("a", "b"),
    )
    source = Source(train, train, (), (), Sounds(settings))
    drawn = []
    made = procedural.like(source, 3, 9, seed=0, advance=drawn.append)
    features, lengths = made.train.inputs
    assert features.shape == (27, 30, 8) and lengths.max() <= 30
    # 0.4 to 1 of the frames.
    assert 12 <= lengths.min() < lengths.max()
    assert all(not row[n:].any() for row, n in zip(features, lengths, strict=True))
    spoken = features[0, : lengths[0]]
    np.testing.assert_allclose(spoken.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(spoken.std(0), 1, atol=1e-2)
    assert len(made.test.labels) == 3 and sum(drawn) == 30
    # Tests are drawings of the same rules, and none of the training set's.
    assert not any((made.test.inputs[0][0] == row).all() for row in features)


def test_what_there_is_nothing_like():
    table = Dataset(np.zeros((2, 5), np.float32), np.zeros(2, np.int32), ("a",))
    with pytest.raises(UserError, match="square pictures or sounds"):
        procedural.like(Source(table, table), 2, 2, 0)
