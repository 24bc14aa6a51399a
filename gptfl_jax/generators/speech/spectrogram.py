"""The log-mel spectrogram that SpeechT5 makes and its vocoder reads, in JAX.

That of `SpeechT5FeatureExtractor`: 80 mel bands (Slaney's scale and normalisation) of
80 to 7,600 Hz, magnitudes of periodic Hann windows of 64 ms every 16 ms, log10. For
training; it can be differentiated.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SAMPLE_RATE_HZ = 16_000
HOP = 256
NUM_MELS = 80
_WINDOW = 1024
_LOWEST_HZ, _HIGHEST_HZ = 80, 7600


def magnitudes(
    waves: Float[Array, "batch samples"], window: int, hop: int
) -> Float[Array, "batch frames frequencies"]:
    """Short-time Fourier magnitudes: 1 + samples // hop frames, the ends mirrored.

    Args:
        waves: any.
        window: samples of a frame, a multiple of `hop`.
        hop: samples from a frame to the next.
    """
    padded = jnp.pad(waves, ((0, 0), (window // 2, window // 2)), mode="reflect")
    count = 1 + waves.shape[1] // hop
    blocks = padded[:, : (count - 1) * hop + window].reshape(len(waves), -1, hop)
    # Taken by number they take 2.5 times as long to be differentiated on a CPU.
    parts = [blocks[:, i : i + count] for i in range(window // hop)]
    frames = jnp.concatenate(parts, -1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = jnp.fft.rfft(frames * hann.astype(np.float32))
    # The slope of a root is infinite at 0.
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.sqrt(jnp.maximum(power, 1e-14))


def log_mel(
    waves: Float[Array, "batch samples"], floor: float = 1e-10
) -> Float[Array, "batch frames mels"]:
    """Spectrograms of waveforms at 16 kHz, 1 + samples // 256 frames each.

    Args:
        waves: in [-1, 1].
        floor: the least magnitude of a band; SpeechT5's is 1e-10.
    """
    bands = magnitudes(waves, _WINDOW, HOP) @ _filters()
    return jnp.log10(jnp.maximum(bands, floor))


@functools.cache
def _filters() -> np.ndarray:
    """[frequencies, mels]"""
    import librosa  # slow to import

    return librosa.filters.mel(
        sr=SAMPLE_RATE_HZ,
        n_fft=_WINDOW,
        n_mels=NUM_MELS,
        fmin=_LOWEST_HZ,
        fmax=_HIGHEST_HZ,
    ).T.astype(np.float32)
