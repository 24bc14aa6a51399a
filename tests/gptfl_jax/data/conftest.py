"""Small data sets of sounds, in the layout in which they are released."""

import numpy as np
import PIL.Image
import pytest
import soundfile

from gptfl_jax import launch
from gptfl_jax.data import audio, sources
from gptfl_jax.data.audio import FeatureSettings

SMALL = {"num_mels": 4, "fft_size": 256}
SETTINGS = FeatureSettings(**SMALL)


def save_picture(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def write(path, seed, samples=1600, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(seed).normal(size=samples) / 10
    soundfile.write(path, wave, rate, subtype="FLOAT")


def by_config(name, folder, **options):
    """The data of a config file that comes with the package, from another folder."""
    config = launch.read_config(name)
    options = {**config.data.options.to_dict(), "cache": "", **options}
    return sources.load(config.data.source, str(folder), features=SMALL, **options)


def features_of(path, **options):
    return audio.compute(audio.read(path), SETTINGS._replace(**options))


def check_rows(dataset, paths, **options):
    """That a data set holds these recordings, in this order."""
    features, lengths = dataset.inputs
    assert len(lengths) == len(paths) == len(dataset.labels) == len(dataset.clients)
    for row, length, path in zip(features, lengths, paths, strict=True):
        expected = features_of(path, **options)
        np.testing.assert_array_equal(row[:length], expected)
        assert length == len(expected) and not row[length:].any()


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory):
    root = tmp_path_factory.mktemp("fsdd")
    for digit, speaker, take in (
        *((3, "anna", 0), (3, "anna", 5), (7, "bert", 4), (7, "bert", 12)),
        *((0, "bert", 49), (1, "cleo", 30)),
    ):
        file = root / "recordings" / f"{digit}_{speaker}_{take}.wav"
        write(file, digit, 800 + 10 * take, rate=8000)
    (root / "recordings" / "notes_of_mine.wav").write_bytes(b"not one of them")
    return root


SPOKEN = {
    "train": ("bed/0a0b0c0d_nohash_0.wav", "bed/1a1b1c1d_nohash_1.wav")
    + ("zero/0a0b0c0d_nohash_0.wav",),
    "validation": ("bed/2a2b2c2d_nohash_0.wav",),
    "testing": ("yes/3a3b3c3d_nohash_0.wav", "zero/3a3b3c3d_nohash_2.wav"),
}


def write_speech_commands(root):
    for number, name in enumerate(sum(SPOKEN.values(), ())):
        write(root / name, number)
    for part in ("validation", "testing"):
        (root / f"{part}_list.txt").write_text("\n".join(SPOKEN[part]) + "\n")
    write(root / "_background_noise_" / "rain.wav", 8, samples=160_000)
    (root / "LICENSE").write_text("CC BY 4.0")


@pytest.fixture(scope="module")
def speech_commands(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech_commands")
    write_speech_commands(root)
    return root
