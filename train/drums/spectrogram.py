"""The log-mel spectrogram that the small drums are made in."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ, magnitudes

HOP = 512
NUM_MELS = 64
FLOOR = 1e-3
"""Magnitude of a mel band that counts as silence, some 65 dB below a loud tone."""

_WINDOW = 1024


def log_mel(
    waves: Float[Array, "batch samples"],
) -> Float[Array, "batch frames mels"]:
    """log10 of mel bands of waveforms at 16 kHz, a frame every 32 ms.

    Magnitudes of periodic Hann windows of 64 ms, in 64 bands (Slaney's scale and
    normalisation) up to 8 kHz, no less than `FLOOR`; 1 + samples // 512 frames.
    """
    bands = magnitudes(waves, _WINDOW, HOP) @ _filters()
    return jnp.log10(jnp.maximum(bands, FLOOR))


@functools.cache
def _filters() -> Float[np.ndarray, "frequencies mels"]:
    import librosa  # slow to import

    return librosa.filters.mel(
        sr=SAMPLE_RATE_HZ, n_fft=_WINDOW, n_mels=NUM_MELS, fmin=0, fmax=8000
    ).T.astype(np.float32)
