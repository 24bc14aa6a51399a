"""Strokes made by rule sound as their instruments do."""

import numpy as np
import pytest

from train.drums import prompts, synthesis
from train.drums.corpus import centroids_hz, durations_s


@pytest.fixture(scope="module")
def strokes():
    """Twelve acoustic and four electronic ones of each class."""
    return {
        name: np.stack(
            [
                synthesis.stroke(name, kind, np.random.default_rng(number))
                for number, kind in enumerate(["acoustic"] * 12 + ["electronic"] * 4)
            ]
        )
        for name in prompts.LABELS.classes
    }


def test_strokes_are_as_loud_and_as_long(strokes):
    for waves in strokes.values():
        assert waves.shape == (16, synthesis.LENGTH)
        np.testing.assert_allclose(np.abs(waves).max(1), 0.9)
        # No two alike.
        assert np.abs(np.corrcoef(waves) - np.eye(16)).max() < 0.99


def test_low_and_high_instruments(strokes):
    centroid = {name: np.median(centroids_hz(w)) for name, w in strokes.items()}
    assert centroid["kick"] < centroid["snare"] < centroid["hi_hat"]
    assert centroid["tom"] < centroid["crash"]
    assert centroid["kick"] < 1200 and centroid["hi_hat"] > 4000


def test_short_and_long_instruments(strokes):
    duration = {name: np.median(durations_s(w)) for name, w in strokes.items()}
    assert duration["kick"] < 0.4 and duration["crash"] > 0.5
    assert duration["hi_hat"] < duration["crash"]


def test_the_same_seed_gives_the_same_stroke():
    one, other = (
        synthesis.stroke("snare", "acoustic", np.random.default_rng(3))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)


def test_short_recordings_are_filled_up():
    wave = np.sin(0.1 * np.arange(800))
    found = synthesis.finish(wave, np.random.default_rng(0))
    assert found.shape == (synthesis.LENGTH,)
    energy = (found**2).reshape(4, -1).sum(1)
    assert energy[0] > 100 * energy[3]
