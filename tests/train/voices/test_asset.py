"""The voices shipped in `gptfl_jax/assets/voices`: they say what they are told."""

import os
import pathlib
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import gptfl_jax
from gptfl_jax.data import sources
from gptfl_jax.generators.speech.speakers import read_speakers, speakers_of
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from train.voices import quality, synthesizers

FOLDER = pathlib.Path(gptfl_jax.__file__).parent / "assets" / "voices"


@pytest.fixture(scope="module")
def pipeline():
    return TextToSpeech.from_pretrained("voices")


@pytest.fixture(scope="module")
def speakers():
    return read_speakers(speakers_of("voices"))


def test_they_are_small_and_complete():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6
    names = {str(path.relative_to(FOLDER)) for path in files}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "spm_char.model",
        "speakers/voices.zip",
        "tokenizer_config.json",
        "vocoder/config.json",
        "vocoder/model.safetensors",
        *(n for n in names if n in ("added_tokens.json", "special_tokens_map.json")),
    }
    for part in (FOLDER, FOLDER / "vocoder"):
        weights = load_file(part / "model.safetensors").values()
        kinds = {w.dtype for w in weights if w.dtype.kind == "f"}
        assert kinds == {np.dtype(np.float16)}


def test_every_voice_of_the_synthesizers_has_a_vector(speakers):
    names = [voice.name for voice in synthesizers.voices()]
    assert sorted(speakers.names) == sorted(names)
    assert np.isfinite(speakers.vectors).all()
    with zipfile.ZipFile(FOLDER / "speakers" / "voices.zip") as archive:
        assert archive.testzip() is None


@pytest.mark.long
def test_words_sound_like_themselves_in_any_voice(pipeline, speakers):
    """A reader fitted on some voices knows the digits of others."""
    voices = np.random.default_rng(0).permutation(len(speakers.names))[:60]

    def spoken(numbers, key):
        labels = np.tile(np.arange(10), len(numbers)).astype(np.int32)
        vectors = speakers.vectors[np.repeat(numbers, 10)]
        waves, lengths = pipeline(
            [quality.DIGITS[label] for label in labels],
            vectors,
            key=key,
            max_seconds=2.0,
        )
        clips = [w[:n] for w, n in zip(np.asarray(waves), lengths, strict=True)]
        assert 0.2 < np.median(lengths) / 16000 < 0.8
        features, frames = quality.features_of(clips)
        means = [part[:n] for part, n in zip(features, frames, strict=True)]
        # Four stretches of each clip, so that the order of sounds counts.
        rows = [
            np.concatenate([x.mean(0) for x in np.array_split(part, 6)])
            for part in means
        ]
        return np.asarray(rows), labels

    from sklearn.linear_model import LogisticRegression

    known = spoken(voices[:40], jax.random.key(0))
    reader = LogisticRegression(C=1.0, max_iter=500).fit(*known)
    assert reader.score(*spoken(voices[40:], jax.random.key(1))) > 0.85


def test_a_key_changes_the_sound_a_little_and_a_voice_much(pipeline, speakers):
    vectors = speakers.vectors[[0, 0, 200]]
    keys = jax.vmap(jax.random.key)(np.asarray([1, 2, 1]))
    mels, lengths = pipeline.spectrograms(["seven"] * 3, vectors, key=keys)
    frames = int(lengths.min())
    one, again, other = np.asarray(mels)[:, :frames]
    near, far = np.abs(one - again).mean(), np.abs(one - other).mean()
    assert 0 < near < 0.5 * far


@pytest.mark.long
def test_recordings_of_people_are_read_by_a_reader_of_the_voice(pipeline, speakers):
    data = pathlib.Path(os.environ.get("GPTFL_DATA_DIR", "")) / "fsdd"
    if not data.is_dir():
        pytest.skip("GPTFL_DATA_DIR with fsdd is not set")
    clips, labels = quality.spoken_digits(pipeline, speakers, jax.random.key(0), 2000)
    reader = quality.train_reader(
        quality.features_of(clips), labels, jax.random.key(1), epochs=10
    )
    heard = quality.HEARD._asdict()
    people = sources.load("fsdd", str(data), features=heard).train
    assert quality.accuracy(reader, people.inputs, people.labels) >= 0.45
