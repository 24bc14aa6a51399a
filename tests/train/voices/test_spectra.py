"""What the vocoder is measured by, on waveforms whose spectra are known."""

import numpy as np
import pytest

from train.voices import spectra

TIME = np.arange(8000) / 16000


def pulses(hertz, most_hz=4000):
    """Cosines of equal strength at all multiples of `hertz`."""
    orders = np.arange(1, int(most_hz / hertz) + 1)
    return 0.02 * np.cos(2 * np.pi * hertz * orders[:, None] * TIME).sum(0)


@pytest.mark.parametrize("hertz", [90.0, 150.0, 333.0])
def test_pitch_is_found_and_noise_has_none(hertz):
    pitch, voiced = spectra.pitch_of(pulses(hertz))
    assert voiced[3:-3].all()
    np.testing.assert_allclose(pitch[3:-3], hertz, rtol=0.005)
    noise = np.random.default_rng(0).standard_normal(8000)
    assert not spectra.pitch_of(noise)[1].any()
    assert not spectra.pitch_of(np.zeros(8000))[1].any()


def test_noise_between_harmonics_hides_them_by_its_power():
    """Noise of a power p a hertz; a harmonic's power lies within 100 Hz of it."""
    hertz, sigma = 200.0, 0.05
    tones = pulses(hertz)
    noise = sigma * np.random.default_rng(0).standard_normal(8000)
    pitch = np.full(32, hertz)
    clear = spectra.harmonics(tones, pitch)[4:-4].mean()
    # Of a cosine of 0.02, 0.02**2 / 2; of noise, sigma**2 over 8 kHz.
    expected = 10 * np.log10(1 + (0.02**2 / 2 / 100) / (sigma**2 / 8000))
    found = spectra.harmonics(tones + noise, pitch)[4:-4].mean()
    assert found == pytest.approx(expected, abs=0.7)
    assert clear > 30
    assert abs(spectra.harmonics(noise, pitch)[4:-4].mean()) < 0.5
    # Where nothing is a multiple of the pitch, the harmonics lie between.
    wrong = spectra.harmonics(pulses(300.0), pitch)[4:-4].mean()
    assert wrong < 5


def test_the_distance_is_that_of_levels():
    wave = np.random.default_rng(1).standard_normal(8000) / 10
    assert spectra.distance(wave, wave) == 0
    assert spectra.distance(wave / 2, wave) == pytest.approx(20 * np.log10(2))
    # Of independent noise: levels have a deviation of 5.57 dB each.
    other = np.random.default_rng(2).standard_normal(8000) / 10
    found = spectra.distance(other, wave)
    assert found == pytest.approx(np.sqrt(2) * 5.57, rel=0.05)


def test_made_are_compared_with_real_ones_where_those_are_voiced():
    real = np.concatenate([pulses(120.0), np.zeros(2000)])
    noise = np.random.default_rng(0).standard_normal(10000) / 50
    silent = np.zeros(10000)
    found = spectra.compare([(real + noise, real), (noise, silent + noise)])
    pitch, voiced = spectra.pitch_of(real)
    assert found.harmonics_db == pytest.approx(
        spectra.harmonics(real + noise, pitch)[voiced].mean()
    )
    assert found.real_harmonics_db == pytest.approx(
        spectra.harmonics(real, pitch)[voiced].mean()
    )
    assert found.harmonics_db < found.real_harmonics_db
    assert found.distance_db == pytest.approx(spectra.distance(real + noise, real) / 2)


def test_clearness_counts_voiced_frames_of_clips_that_have_some():
    noise = np.random.default_rng(0).standard_normal(8000)
    wave = np.concatenate([pulses(120.0), np.zeros(3000)])
    pitch, voiced = spectra.pitch_of(wave)
    expected = spectra.harmonics(wave, pitch)[voiced].mean()
    assert spectra.clearness([wave, noise]) == pytest.approx(expected)
