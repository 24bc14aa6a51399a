"""How near waveforms are to others in their spectra, and how clear their pitch is.

What the vocoder is measured by: spectrograms of recorded speech are made sound again
and compared with the recording ("copy synthesis"). In numpy, in decibels.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ

# Windows of the spectra compared, in samples; each hop is a quarter.
_WINDOWS = (2048, 1024, 512, 256)
# Less than this share of a clip's largest magnitude counts as silence: -70 dB.
_QUIETEST = 10 ** (-70 / 20)
# Pitch and its harmonics are told in windows of 64 ms every 16 ms.
_PITCH_WINDOW, _PITCH_HOP = 1024, 256
_LOWEST_HZ, _HIGHEST_HZ = 75.0, 400.0
# Least periodicity, 0 to 1, and least loudness against the clip's loudest frame.
_VOICED, _AUDIBLE = 0.7, 10 ** (-30 / 20)
# Of a shorter period than the best, so that twice a period is not taken for it.
_AS_GOOD = 0.9
_HARMONICS_BELOW_HZ = 4000.0


Wave = Float[np.ndarray, " samples"]


class Clearness(NamedTuple):
    """What `compare` finds, means over clips."""

    distance_db: float
    """Log-spectral distance of the waveforms: 0 is the best."""
    harmonics_db: float
    """How far the harmonics stand out in the waveforms made."""
    real_harmonics_db: float
    """The same of the real ones, in the same frames."""


def compare(pairs: Iterable[tuple[Wave, Wave]]) -> Clearness:
    """Compares made with real waveforms at 16 kHz, sample for sample.

    Clips without a voiced frame count for the distance alone.
    """
    distances, ours, theirs = [], [], []
    for made, real in pairs:
        distances.append(distance(made, real))
        pitch, voiced = pitch_of(real)
        if voiced.any():
            ours.append(harmonics(made, pitch)[voiced].mean())
            theirs.append(harmonics(real, pitch)[voiced].mean())
    return Clearness(*(float(np.mean(x)) for x in (distances, ours, theirs)))


def clearness(clips: Iterable[Float[np.ndarray, " samples"]]) -> float:
    """How far harmonics stand out in the voiced frames of clips, in dB, their mean."""
    values = []
    for clip in clips:
        pitch, voiced = pitch_of(clip)
        if voiced.any():
            values.append(harmonics(clip, pitch)[voiced].mean())
    return float(np.mean(values))


def distance(
    made: Float[np.ndarray, " samples"], real: Float[np.ndarray, " samples"]
) -> float:
    """Log-spectral distance in dB, mean over four resolutions.

    The root mean square over frequencies of the difference of levels, its mean over
    frames (Rabiner and Juang 1993, 4.5.1). Levels 70 dB below the largest of the real
    waveform count as that.
    """
    values = []
    for window in _WINDOWS:
        ours, theirs = (np.abs(_spectra(x, window, window // 4)) for x in (made, real))
        floor = max(_QUIETEST * theirs.max(), 1e-12)
        levels = 20 * np.log10(np.maximum(ours, floor) / np.maximum(theirs, floor))
        values.append(np.sqrt(np.square(levels).mean(1)).mean())
    return float(np.mean(values))


def pitch_of(
    wave: Float[np.ndarray, " samples"],
) -> tuple[Float[np.ndarray, " frames"], Bool[np.ndarray, " frames"]]:
    """Fundamental frequency in Hz of each frame, and whether it is voiced.

    The first peak of the autocorrelation that is nearly the highest, divided by that of
    the window (Boersma 1993).
    """
    frames = _frames(wave, _PITCH_WINDOW, _PITCH_HOP)
    frames = frames - frames.mean(1, keepdims=True)
    window = np.hanning(_PITCH_WINDOW + 1)[:-1]

    def correlation(x):
        power = np.square(np.abs(np.fft.rfft(x, 2 * _PITCH_WINDOW)))
        values = np.fft.irfft(power)[..., :_PITCH_WINDOW]
        return values / np.maximum(values[..., :1], 1e-12)

    shortest = int(SAMPLE_RATE_HZ / _HIGHEST_HZ)
    longest = int(SAMPLE_RATE_HZ / _LOWEST_HZ)
    likeness = correlation(frames * window) / np.maximum(correlation(window), 1e-3)
    # One more at each end, to be told from.
    near = likeness[:, shortest - 1 : longest + 2]
    middle = near[:, 1:-1]
    peaks = (middle >= near[:, :-2]) & (middle > near[:, 2:])
    heights = np.where(peaks, middle, 0.0)
    best = heights.max(1, keepdims=True)
    first = np.argmax(heights >= np.maximum(_AS_GOOD * best, 1e-6), axis=1)
    rows = np.arange(len(frames))
    left, top, right = (near[rows, first + i] for i in range(3))
    # The top of the parabola through the three.
    bend = np.minimum(left - 2 * top + right, -1e-9)
    lag = shortest + first + np.clip((left - right) / (2 * bend), -0.5, 0.5)
    loudness = np.sqrt(np.square(frames).mean(1))
    voiced = (best[:, 0] > _VOICED) & (loudness > _AUDIBLE * loudness.max())
    return SAMPLE_RATE_HZ / lag, voiced


def harmonics(
    wave: Float[np.ndarray, " samples"], pitch: Float[np.ndarray, " frames"]
) -> Float[np.ndarray, " frames"]:
    """How far harmonics stand out, in dB, in each frame of a waveform.

    The mean power within a quarter of the pitch of a multiple of it, against that
    farther from all multiples, in decibels; the mean over the harmonics below 4 kHz.
    Noise has 0.

    Args:
        wave: at 16 kHz.
        pitch: in Hz, of `pitch_of`.
    """
    padded = 4 * _PITCH_WINDOW  # a frequency every 4 Hz
    power = np.square(np.abs(_spectra(wave, _PITCH_WINDOW, _PITCH_HOP, padded)))
    number = np.arange(power.shape[1]) * (SAMPLE_RATE_HZ / padded)
    values = np.zeros(len(power))
    for i, (row, hertz) in enumerate(zip(power, pitch, strict=True)):
        order = np.round(number / hertz).astype(int)
        most = int(_HARMONICS_BELOW_HZ / hertz)
        near = np.abs(number / hertz - order) < 0.25
        at, between = (
            np.bincount(order[part], row[part], most + 1)[1 : most + 1]
            / np.maximum(np.bincount(order[part], minlength=most + 1), 1)[1 : most + 1]
            for part in (near, ~near)
        )
        least = 1e-9 * max(row.max(), 1e-12)
        values[i] = np.mean(10 * np.log10((at + least) / (between + least)))
    return values


def _frames(wave, window, hop):
    """[frames, window], the first and the last filled up with zeros."""
    padded = np.pad(np.asarray(wave, np.float64), window // 2)
    starts = np.arange(0, len(padded) - window + 1, hop)
    return padded[starts[:, None] + np.arange(window)]


def _spectra(wave, window, hop, size=None):
    hann = np.hanning(window + 1)[:-1]
    return np.fft.rfft(_frames(wave, window, hop) * hann, size)
