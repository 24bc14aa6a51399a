"""The log-mel spectrogram against a plain numpy one and that of transformers."""

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from gptfl_jax.generators.speech import spectrogram


@pytest.fixture(scope="module")
def wave():
    """A second of a gliding tone in noise, then silence."""
    generator = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (200 + 1500 * time) * time)
    wave = wave + 0.01 * generator.standard_normal(16000)
    return np.concatenate([wave, np.zeros(4000)]).astype(np.float32)


def test_it_is_the_formula(wave):
    padded = np.pad(wave.astype(np.float64), 512, mode="reflect")
    window = np.sin(np.pi * np.arange(1024) / 1024) ** 2
    filters = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=80, fmin=80, fmax=7600)
    frames = [
        np.log10(np.maximum(1e-5, filters @ np.abs(np.fft.rfft(part * window))))
        for part in (padded[i * 256 : i * 256 + 1024] for i in range(79))
    ]
    ours = spectrogram.log_mel(jnp.asarray(wave)[None], 1e-5)
    assert ours.shape == (1, 79, 80)
    np.testing.assert_allclose(ours[0], frames, atol=2e-4)
    assert ours[0, -1].max() == -5  # silence


def test_it_is_that_of_transformers(wave):
    from transformers import SpeechT5FeatureExtractor

    extract = SpeechT5FeatureExtractor()
    theirs = extract(audio_target=wave, sampling_rate=16000, return_tensors="np")
    ours = spectrogram.log_mel(jnp.asarray(wave)[None])
    # In silence both are at the floor but for rounding errors of the spectra.
    loud = theirs.input_values > -5
    assert loud.mean() > 0.7
    np.testing.assert_allclose(ours[loud], theirs.input_values[loud], atol=2e-4)


def test_it_has_a_gradient_in_silence(wave):
    slopes = jax.jit(jax.grad(lambda x: spectrogram.log_mel(x[None]).mean()))
    assert np.isfinite(slopes(jnp.zeros(2048))).all()
    # In 64 bits, as the logarithms of faint bands are steep.
    with jax.enable_x64(True):
        x = jnp.asarray(wave[:2048], jnp.float64)
        step = jnp.asarray(np.random.default_rng(1).standard_normal(2048) * 1e-6)

        @jax.jit
        def value(x):
            return spectrogram.log_mel(x[None]).sum()

        slope = (value(x + step) - value(x - step)) / 2
        gradient = jax.jit(jax.grad(value))(x)
        np.testing.assert_allclose(slope, gradient @ step, rtol=1e-4)


def test_magnitudes_of_a_tone_are_where_the_tone_is():
    wave = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(8000) / 16000)[None]
    found = spectrogram.magnitudes(wave, 512, 128)
    assert found.shape == (1, 63, 257)
    assert (found[0, 2:-2].argmax(-1) == 32).all()  # 1000 Hz of 16000 / 512 each
    np.testing.assert_allclose(found[0, 20, 32], 512 / 4, rtol=1e-3)
