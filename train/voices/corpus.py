"""Words of speech synthesizers as arrays: what the small voices learn from."""

import io
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int16, Int32
from ml_collections import ConfigDict

from gptfl_jax import artifacts, labels
from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech.spectrogram import HOP, SAMPLE_RATE_HZ, log_mel
from gptfl_jax.progress import say
from train.voices import synthesizers

# Magnitude of a mel band that counts as silence: log10 is -5.
FLOOR = 1e-5
# Frames of silence that a clip ends with, so that its end can be learned.
_SILENT_FRAMES = 2
# What no run learns from: the vocoder is measured by words that it has not heard.
_HELD_OUT_WORDS = (
    *("water", "yellow", "window", "garden", "river", "summer", "lemon", "silver"),
    *(
        "morning",
        "monkey",
        "village",
        "number",
        "winter",
        "mother",
        "rainbow",
        "animal",
    ),
)


class Corpus(NamedTuple):
    """Words spoken by synthesizers."""

    waves: Int16[np.ndarray, "clips samples"]
    """16-bit samples at 16 kHz, zeros behind the end."""
    frames: Int32[np.ndarray, " clips"]
    """Length of each clip in hops, its silent end included."""
    words: Int32[np.ndarray, " clips"]
    voices: Int32[np.ndarray, " clips"]


def words_of(settings: ConfigDict) -> tuple[str, ...]:
    """The words to speak; by default the 35 of Speech Commands, digits among them."""
    if settings.words:
        return tuple(settings.words)
    classes = labels.label_set("speech_commands").classes
    return tuple(word for word in classes if word != "silence")


def voices_of(settings: ConfigDict) -> tuple[synthesizers.Voice, ...]:
    """The synthesizers' voices that speak them.

    Raises:
        UserError: an engine that there is not.
    """
    unknown = sorted(set(settings.engines) - set(synthesizers.ENGINES))
    if unknown:
        raise UserError(
            f"config.text_to_speech.engines: no {', '.join(unknown)}; there are "
            + ", ".join(synthesizers.ENGINES)
        )
    voices = synthesizers.voices()
    return tuple(v for v in voices if v.engine in settings.engines)


def make_corpus(
    clips: Sequence[Sequence[Float32[np.ndarray, "..."]]],
    most_frames: int,
    multiple: int,
) -> Corpus:
    """Puts clips, a list of words for each voice, into arrays.

    Clips of more than `most_frames` hops are left out; the length of the others is
    rounded up to a multiple of `multiple`.
    """
    waves, frames, words, voices = [], [], [], []
    for voice, spoken in enumerate(clips):
        for word, clip in enumerate(spoken):
            length = -(-len(clip) // HOP) + _SILENT_FRAMES
            length += -length % multiple
            if length > most_frames:
                continue
            wave = np.zeros(most_frames * HOP, np.int16)
            wave[: len(clip)] = np.round(clip * (2**15 - 1))
            waves.append(wave)
            frames.append(length)
            words.append(word)
            voices.append(voice)
    numbers = (np.asarray(x, np.int32) for x in (frames, words, voices))
    return Corpus(np.asarray(waves), *numbers)


def load_corpus(workdir: pathlib.Path, settings: ConfigDict) -> Corpus:
    """The corpus, kept in the workdir so that a resumed run needs no synthesizer."""

    def speak():
        words, voices = words_of(settings), voices_of(settings)
        clips = synthesizers.speak_all(words, voices)
        corpus = make_corpus(clips, settings.max_frames, settings.reduction_factor)
        asked, made = len(words) * len(voices), len(corpus.frames)
        say(
            f"{made:,} clips of {len(words)} words in {len(voices)} voices, "
            f"{corpus.frames.sum() * HOP / SAMPLE_RATE_HZ / 60:.0f} minutes; "
            f"{asked - made} left out, longer than {settings.max_frames} frames",
        )
        return corpus

    return _load(workdir / "corpus.npz", speak)


def load_held_out(workdir: pathlib.Path, settings: ConfigDict) -> Corpus:
    """Clips that nothing is learned from: each voice says a word that is not learned.

    Kept in the workdir as the corpus is. Its `words` are all 0.
    """

    def speak():
        words = [w for w in _HELD_OUT_WORDS if w not in words_of(settings)]
        tasks = zip(voices_of(settings), itertools.cycle(words), strict=False)
        clips = synthesizers.speak_each(tasks)
        # Its one word is the first for each voice.
        return make_corpus(
            [[clip] for clip in clips], settings.max_frames, settings.reduction_factor
        )

    return _load(workdir / "held_out.npz", speak)


def _load(path: pathlib.Path, speak: Callable[[], Corpus]) -> Corpus:
    """What is stored, or else what is spoken now and stored."""
    if not path.exists():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **speak()._asdict())
        artifacts.write_bytes(path, buffer.getvalue())
    with np.load(path) as stored:
        return Corpus(*(stored[name] for name in Corpus._fields))


def spectrograms(corpus: Corpus) -> Float32[np.ndarray, "clips frames mels"]:
    """Log-mel spectrograms of all clips."""
    frames = corpus.waves.shape[1] // HOP

    @jax.jit
    def compute(waves):
        return log_mel(waves / 2**15, FLOOR)[:, :frames]

    size = 256
    parts = [
        jax.device_get(compute(jnp.asarray(corpus.waves[start : start + size])))
        for start in range(0, len(corpus.waves), size)
    ]
    return np.concatenate(parts)
