"""Strokes of drums as arrays: what the small drums learn from."""

import io
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int16, Int32
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from gptfl_jax import artifacts
from gptfl_jax.data import audio
from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ
from gptfl_jax.progress import say
from train.drums import prompts, synthesis
from train.drums.spectrogram import HOP, log_mel

FRAMES = synthesis.LENGTH // HOP

# Sonic Pi's samples (CC0) that are single strokes: file, class, kind.
_RECORDINGS = (
    (r"bd_\w+", "kick", "electronic"),
    (r"elec_(hollow|soft)_kick", "kick", "electronic"),
    (r"drum_(bass_hard|bass_soft|heavy_kick)", "kick", "acoustic"),
    (r"sn_\w+|elec_(\w+_)?snare", "snare", "electronic"),
    (r"drum_snare_(hard|soft)", "snare", "acoustic"),
    (r"elec_fuzz_tom", "tom", "electronic"),
    (r"drum_tom_(hi|mid|lo)_(hard|soft)", "tom", "acoustic"),
    (r"drum_cymbal_(closed|open|pedal)", "hi_hat", "acoustic"),
    (r"drum_cymbal_(hard|soft)", "crash", "acoustic"),
    (r"elec_cymbal", "crash", "electronic"),
)
# Of the strokes of a class, the brightest and the darkest, the shortest and longest.
_EXTREME = 0.4
# A recording varies in speed, hence in pitch and length, by up to this factor.
_SPEED = 1.3
# Beside the classes, in the seeds of random draws.
_OF_RECORDINGS = 99


class Corpus(NamedTuple):
    """Strokes and what can be said of them."""

    waves: Int16[np.ndarray, "clips samples"]
    """16-bit samples at 16 kHz."""
    attributes: Int32[np.ndarray, "clips 4"]
    """Class, brightness, length and kind, as indices into the words of `prompts`."""


class Recording(NamedTuple):
    """A stroke of Sonic Pi."""

    wave: Float32[np.ndarray, " samples"]
    name: str
    kind: str


def load_corpus(workdir: pathlib.Path, config: ConfigDict) -> Corpus:
    """The corpus, kept in the workdir so that a resumed run needs no recordings."""
    path = workdir / "corpus.npz"
    if not path.exists():
        settings = config.text_to_sound
        recordings = read_recordings(settings.recordings)
        corpus = make_corpus(settings, recordings, config.seed)
        say(
            f"{len(corpus.waves):,} strokes, "
            f"{len(recordings) * settings.variations:,} of them from "
            f"{len(recordings)} recordings"
        )
        buffer = io.BytesIO()
        np.savez(buffer, **corpus._asdict())
        artifacts.write_bytes(path, buffer.getvalue())
    with np.load(path) as stored:
        return Corpus(*(stored[name] for name in Corpus._fields))


def read_recordings(folder: str) -> list[Recording]:
    """The strokes among Sonic Pi's samples; none if `folder` is empty.

    Raises:
        UserError: the folder holds none.
    """
    if not folder:
        return []
    found = []
    for path in sorted(pathlib.Path(folder).glob("*.flac")):
        for pattern, name, kind in _RECORDINGS:
            if re.fullmatch(pattern, path.stem):
                wave = audio.read(path, SAMPLE_RATE_HZ, duration_s=2.0)
                found.append(Recording(wave, name, kind))
    if not found:
        raise UserError(
            f"config.text_to_sound.recordings = {folder!r}: holds no samples of Sonic "
            "Pi; apt install sonic-pi-samples, or leave it empty to do without"
        )
    return found


def make_corpus(settings: ConfigDict, recordings: list[Recording], seed: int) -> Corpus:
    """Strokes by rule, `strokes` of each class, and `variations` of each recording."""
    waves, attributes = [], []

    def add(wave, name, kind):
        waves.append(np.round(wave * (2**15 - 1)).astype(np.int16))
        label = prompts.LABELS.classes.index(name)
        attributes.append((label, 0, 0, prompts.KINDS.index(kind)))

    for label, name in enumerate(tqdm(prompts.LABELS.classes, desc="strokes")):
        for number in range(settings.strokes):
            rng = np.random.default_rng([seed, label, number])
            kind = synthesis.KINDS[int(rng.random() < settings.electronic)]
            add(synthesis.stroke(name, kind, rng), name, kind)
    for place, recording in enumerate(recordings):
        for number in range(settings.variations):
            rng = np.random.default_rng(
                [seed, len(prompts.LABELS.classes), place, number]
            )
            speed = _SPEED ** rng.uniform(-1, 1)
            count = int(min(len(recording.wave) / speed, synthesis.LENGTH))
            times = np.arange(count) * speed
            wave = np.interp(times, np.arange(len(recording.wave)), recording.wave)
            add(synthesis.finish(wave, rng), recording.name, recording.kind)
    corpus = Corpus(np.stack(waves), np.asarray(attributes, np.int32))
    return corpus._replace(attributes=_described(corpus))


def _described(corpus: Corpus) -> Int32[np.ndarray, "clips 4"]:
    """The attributes, with those that are measured in relation to others of a class."""
    result = corpus.attributes.copy()
    measures = (centroids_hz(corpus.waves), durations_s(corpus.waves))
    # `BRIGHTNESS` has the bright first, `LENGTHS` the short.
    for slot, values in ((1, -measures[0]), (2, measures[1])):
        for label in range(len(prompts.LABELS.classes)):
            rows = np.flatnonzero(result[:, 0] == label)
            low, high = np.quantile(values[rows], (_EXTREME, 1 - _EXTREME))
            result[rows, slot] = np.select(
                [values[rows] <= low, values[rows] >= high], [1, 2], 0
            )
    return result


def centroids_hz(
    waves: Int16[np.ndarray, "clips samples"] | Float[np.ndarray, "clips samples"],
) -> Float[np.ndarray, " clips"]:
    """The mean frequency of each clip's spectrum, weighted by its magnitude."""
    frequency = np.fft.rfftfreq(waves.shape[1], 1 / SAMPLE_RATE_HZ)
    result = []
    for wave in waves:
        spectrum = np.abs(np.fft.rfft(wave.astype(np.float64)))
        result.append((spectrum * frequency).sum() / max(spectrum.sum(), 1e-9))
    return np.asarray(result)


def durations_s(
    waves: Int16[np.ndarray, "clips samples"] | Float[np.ndarray, "clips samples"],
) -> Float[np.ndarray, " clips"]:
    """The time in which 95 % of each clip's energy has come."""
    result = []
    for wave in waves:
        energy = np.cumsum(wave.astype(np.float64) ** 2)
        place = np.searchsorted(energy, 0.95 * energy[-1])
        result.append(place / SAMPLE_RATE_HZ)
    return np.asarray(result)


def spectrograms(
    waves: Int16[np.ndarray, "clips samples"],
) -> Float32[np.ndarray, "clips frames mels"]:
    """Log-mel spectrograms of strokes, `FRAMES` frames each."""

    @jax.jit
    def compute(waves):
        return log_mel(waves / 2**15)[:, :FRAMES]

    size = 256
    parts = [
        jax.device_get(compute(waves[start : start + size]))
        for start in range(0, len(waves), size)
    ]
    return np.concatenate(parts)
