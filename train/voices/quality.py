"""What the small voices say, and how well it can be recognised."""

import pathlib
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float, Float32, Int32, PRNGKeyArray
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from gptfl_jax import artifacts, drawing, labels
from gptfl_jax.data import audio, sources
from gptfl_jax.data.sources import fsdd
from gptfl_jax.generators.speech.speakers import Speakers, read_speakers
from gptfl_jax.generators.speech.spectrogram import (
    HOP,
    NUM_MELS,
    SAMPLE_RATE_HZ,
    log_mel,
)
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from gptfl_jax.progress import say
from train import readers
from train.voices import spectra
from train.voices.corpus import FLOOR, Corpus, spectrograms
from train.voices.synthesizers import Voice

DIGITS = tuple(labels.label_set("fsdd").phrases.values())
# What the classifier hears that measures the quality: as much as a telephone carries.
HEARD = audio.FeatureSettings(**fsdd.FEATURES)


def digit_clips(
    corpus: Corpus, words: Sequence[str]
) -> tuple[list[Float32[np.ndarray, " samples"]], Int32[np.ndarray, " clips"]]:
    """The synthesizers' digits at 16 kHz, and their labels."""
    label = {word: number for number, word in enumerate(DIGITS)}
    rows = [i for i, word in enumerate(corpus.words) if words[word] in label]
    clips = [
        corpus.waves[i, : corpus.frames[i] * HOP].astype(np.float32) / 2**15
        for i in rows
    ]
    return clips, np.asarray([label[words[corpus.words[i]]] for i in rows], np.int32)


def spoken_digits(
    pipeline: TextToSpeech,
    speakers: Speakers,
    key: PRNGKeyArray,
    count: int,
    batch_size: int = 128,
) -> tuple[list[Float32[np.ndarray, " samples"]], Int32[np.ndarray, " clips"]]:
    """Digits that the voice speaks, evenly, each as a random speaker; their labels."""
    numbers = np.arange(count) % len(DIGITS)
    voice_key, sample_key = jax.random.split(key)
    shape = (count,)
    voices = jax.random.randint(voice_key, shape, 0, len(speakers.names))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(sample_key, jnp.arange(count))
    clips = []
    for start in tqdm(range(0, count, batch_size), desc="samples", mininterval=5):
        part = slice(start, start + batch_size)
        waves, lengths = pipeline(
            [DIGITS[number] for number in numbers[part]],
            speakers.vectors[np.asarray(voices[part])],
            key=keys[part],
            max_seconds=2.0,
        )
        waves = np.asarray(waves)
        clips += [w[:n] for w, n in zip(waves, lengths, strict=True)]
    return clips, numbers.astype(np.int32)


def copies(
    pipeline: TextToSpeech, clips: Corpus
) -> Iterator[tuple[Float32[np.ndarray, " samples"], Float32[np.ndarray, " samples"]]]:
    """What the vocoder makes of each clip's spectrogram, and the clip."""
    vocode = jax.jit(pipeline.vocoder.apply)
    mels = spectrograms(clips)
    for start in range(0, len(mels), 64):
        part = slice(start, start + 64)
        made = vocode(pipeline.variables["vocoder"], mels[part], clips.frames[part])
        for ours, theirs, frames in zip(
            np.asarray(made), clips.waves[part], clips.frames[part], strict=True
        ):
            theirs = theirs[: frames * HOP].astype(np.float32) / 2**15
            yield ours[: frames * HOP], theirs


def features_of(
    clips: Sequence[Float[np.ndarray, " _samples"]],
) -> tuple[Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]]:
    """Features of clips at 16 kHz and of their lengths, as the reader takes them."""
    features = []
    for clip in clips:
        clip = audio.trim_silence(clip, SAMPLE_RATE_HZ, 40.0)
        wave = audio.resample(clip, SAMPLE_RATE_HZ, HEARD.sample_rate_hz)
        features.append(audio.compute(wave, HEARD))
    return audio.pad(features, HEARD.num_bands)


def _to_frames(inputs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same features as an array of the most frames that there can be."""
    features, lengths = inputs
    most = 1 + round(HEARD.max_duration_s * HEARD.sample_rate_hz / HEARD.hop)
    room = [(0, 0), (0, most - features.shape[1]), (0, 0)]
    return np.pad(features, room), lengths


def train_reader(
    inputs: readers.Features,
    labels: Int32[np.ndarray, " clips"],
    key: PRNGKeyArray,
    epochs: int,
) -> readers.Reader:
    """A small audio classifier of digits."""
    frames = _to_frames(inputs)
    return readers.train_reader(frames, labels, len(DIGITS), 8, key, epochs)


def accuracy(
    reader: readers.Reader,
    inputs: readers.Features,
    labels: Int32[np.ndarray, " clips"],
) -> float:
    """Share of clips whose digit a reader of `train_reader` recognises."""
    return readers.accuracy(reader, _to_frames(inputs), labels, len(DIGITS))


def measure(
    workdir: pathlib.Path,
    settings: ConfigDict,
    keys: tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray],
    corpus: Corpus,
    held_out: Corpus,
    words: Sequence[str],
    voices: Sequence[Voice],
) -> None:
    """`samples.png`, `samples/*.wav` and `quality.json` of the model as written.

    Args:
        workdir: The run's folder, with the model in `model/`.
        settings: The config's section `text_to_speech`.
        keys: Of the samples, of the clips that are recognised, and of the readers.
        corpus: What the model has learned from.
        held_out: Clips that nothing has learned from.
        words: Its words.
        voices: Its voices.
    """
    sample_key, test_key, reader_key = keys
    folder = workdir / "model"
    pipeline = TextToSpeech.from_pretrained(folder, folder / "vocoder")
    speakers = read_speakers(folder / "speakers")
    _save_samples(workdir, pipeline, speakers, sample_key, corpus, words, voices)
    if not settings.test_samples:
        return
    start = time.perf_counter()
    clips, digits = spoken_digits(pipeline, speakers, test_key, settings.test_samples)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(clips)
    epochs = settings.test_epochs
    original, their_digits = digit_clips(corpus, words)
    ours, theirs = features_of(clips), features_of(original)
    their_key, our_key = jax.random.split(reader_key)
    by_theirs = train_reader(theirs, their_digits, their_key, epochs)
    copied = spectra.compare(copies(pipeline, held_out))

    quality = {
        "copies_distance_db": copied.distance_db,
        "copies_harmonics_db": copied.harmonics_db,
        "their_originals_harmonics_db": copied.real_harmonics_db,
        "voice_harmonics_db": spectra.clearness(clips),
        "synthesizers_harmonics_db": spectra.clearness(original),
        "samples": len(clips),
        "milliseconds_per_sample": milliseconds,
        "recognised_by_reader_of_synthesizers": accuracy(by_theirs, ours, digits),
    }
    if settings.test_folder:
        source = sources.load("fsdd", settings.test_folder, features=HEARD._asdict())
        recordings = [
            np.concatenate(parts)
            for parts in zip(source.train.inputs, source.test.inputs, strict=True)
        ]
        spoken = np.concatenate([source.train.labels, source.test.labels])
        by_ours = train_reader(ours, digits, our_key, epochs)
        quality |= {
            "recordings": len(spoken),
            "recordings_read_by_reader_of_voice": accuracy(by_ours, recordings, spoken),
            "recordings_read_by_reader_of_synthesizers": accuracy(
                by_theirs, recordings, spoken
            ),
        }
    artifacts.write_json(workdir / "quality.json", quality)
    for name, value in quality.items():
        say(f"{name}: {value:.3g}")


def _save_samples(workdir, pipeline, speakers, key, corpus, words, voices) -> None:
    """Words of some synthesizers, and below them the same from the model."""
    numbers = np.linspace(0, len(corpus.frames) - 1, 16).astype(int)
    vectors = speakers.vectors[
        [speakers.names.index(voices[corpus.voices[i]].name) for i in numbers]
    ]
    texts = [words[corpus.words[i]] for i in numbers]
    waves, lengths = pipeline(texts, vectors, key=key, max_seconds=2.0)
    rows = []
    for i, (number, wave, length) in enumerate(
        zip(numbers, np.asarray(waves), lengths, strict=True)
    ):
        original = corpus.waves[number, : corpus.frames[number] * HOP] / 2**15
        name = f"{i:02d}-{texts[i]}-{voices[corpus.voices[number]].name}"
        for clip, who in ((original, "synthesizer"), (wave[:length], "voice")):
            path = workdir / "samples" / f"{name}-{who}.wav"
            artifacts.write_bytes(path, audio.encode_wav(clip, SAMPLE_RATE_HZ))
        rows.append((original.astype(np.float32), wave[:length]))
    artifacts.write_bytes(workdir / "samples.png", _sheet(rows))


def _sheet(rows: Sequence[tuple[np.ndarray, np.ndarray]], columns: int = 8) -> bytes:
    """Spectrograms of pairs of clips, one above the other, as a PNG."""
    width, height = 64, NUM_MELS
    sheet = np.zeros((2 * -(-len(rows) // columns), columns, height, width))
    for i, pair in enumerate(rows):
        for j, clip in enumerate(pair):
            mel = np.asarray(log_mel(jnp.asarray(clip)[None], FLOOR))[0, :width].T
            place = sheet[2 * (i // columns) + j, i % columns]
            place[:, : mel.shape[1]] = (mel[::-1] / 6 + 5 / 6).clip(0, 1)
    colours = matplotlib.colormaps["magma"](sheet, bytes=True)[..., :3]
    return drawing.encode_png(drawing.grid(colours, (2 * height, 2 * width)))
