import io
import pathlib
import struct

import numpy as np
import PIL.Image
import pytest

from gptfl_jax import artifacts
from gptfl_jax.data import audio, datasets, sources
from gptfl_jax.data.synthetic import load_synthetic, synthetic_pictures
from gptfl_jax.errors import UserError

from .conftest import save_picture, write

CLASSES = ("cat", "car")


@pytest.fixture
def synthetic(tmp_path) -> pathlib.Path:
    """Six 32x32 RGB pictures and their manifest; brightness 10 i + channel."""
    folder = tmp_path / "synthetic"
    samples = []
    for i in range(6):
        label = CLASSES[i % 2]
        file = f"{label}/{label}_{i}.png"
        save_picture(folder / file, np.full((32, 32, 3), 10 * i) + np.arange(3))
        samples.append(artifacts.Sample(file, label, "a prompt", i, 7.5, "glyphs"))
    artifacts.append_samples(folder, samples)
    return folder


def test_synthetic_pictures_follow_the_manifest(synthetic):
    data, report = synthetic_pictures(synthetic, CLASSES)
    assert data.inputs.shape == (6, 32, 32, 3)
    assert data.inputs[:, 5, 5, 2].tolist() == [2, 12, 22, 32, 42, 52]
    assert data.labels.tolist() == [0, 1] * 3 and data.class_names == CLASSES
    assert report == datasets.LoadReport("synthetic pictures", 6)
    assert str(report) == "6 synthetic pictures loaded"


def test_synthetic_pictures_are_converted_by_block_means(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    save_picture(tmp_path / "cat_train_0_0.png", pixels)
    data, _ = synthetic_pictures(tmp_path, CLASSES, image_size=8, channels=1)
    grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    blocks = grey.reshape(8, 4, 8, 4).mean((1, 3))
    np.testing.assert_allclose(data.inputs[0, ..., 0], blocks, atol=0.5 + 1e-4)


def test_broken_pictures_are_reported_and_left_out(synthetic):
    (synthetic / "cat/cat_0.png").write_bytes(
        (synthetic / "cat/cat_0.png").read_bytes()[:60]
    )
    (synthetic / "car/car_1.png").unlink()
    save_picture(synthetic / "cat/cat_2.png", np.zeros((16, 32, 3)))
    PIL.Image.new("RGBA", (32, 32)).save(synthetic / "car/car_3.png")
    artifacts.append_samples(
        synthetic, [artifacts.Sample("cat/x.png", "cab", "", 0, None, "glyphs")]
    )
    data, report = synthetic_pictures(synthetic, CLASSES, 8, 1)
    assert data.inputs[:, 0, 0, 0].tolist() == [41, 51]
    assert data.labels.tolist() == [0, 1]
    assert report.loaded == 2
    reasons = dict(report.left_out)
    assert reasons["cat/x.png"] == "label 'cab' is not a class"
    assert reasons["cat/cat_0.png"].startswith("cannot be decoded")
    assert reasons["car/car_1.png"] == "cannot be read (No such file or directory)"
    assert reasons["cat/cat_2.png"] == "size 32x16, most are 32x32"
    assert reasons["car/car_3.png"] == "mode RGBA, not RGB or L"
    assert "2 synthetic pictures loaded; 5 left out:" in str(report)


def test_pictures_that_changed_since_they_were_made_are_left_out(synthetic):
    """Whole pictures, but other ones than the manifest has the digests of."""
    lines = [
        line._replace(sha256=artifacts.digest((synthetic / line.file).read_bytes()))
        for line in artifacts.read_manifest(synthetic)
    ]
    artifacts.write_manifest(synthetic, lines)
    whole, report = synthetic_pictures(synthetic, CLASSES)
    assert report == datasets.LoadReport("synthetic pictures", 6)
    save_picture(synthetic / "cat/cat_2.png", np.full((32, 32, 3), 99))
    data, report = synthetic_pictures(synthetic, CLASSES)
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(data.inputs, whole.inputs[rest])
    assert report == datasets.LoadReport(
        "synthetic pictures", 5, (("cat/cat_2.png", artifacts.CHANGED),)
    )


def test_manifest_line_that_leaves_the_folder_is_refused(synthetic):
    save_picture(synthetic.parent / "secret.png", np.zeros((32, 32, 3)))
    artifacts.append_samples(
        synthetic, [artifacts.Sample("../secret.png", "cat", "", 0, None, "glyphs")]
    )
    with pytest.raises(UserError, match="line 7"):
        synthetic_pictures(synthetic, CLASSES)


def test_no_usable_picture_is_an_error(tmp_path):
    with pytest.raises(UserError, match="python -m generate.images"):
        synthetic_pictures(tmp_path / "absent", CLASSES)
    save_picture(tmp_path / "dog_train_0_0.png", np.zeros((32, 32, 3)))
    with pytest.raises(UserError, match="label 'dog' is not a class"):
        synthetic_pictures(tmp_path, CLASSES)


def test_the_originals_file_names_are_matched_as_a_whole(tmp_path):
    for i, name in enumerate(
        [
            "car_train_0_3.png",
            "scar_train_0_1.png",
            "cat_train_12_0.png",
            "cat_add_0_1.png",
            "preview.png",
            "a_Cat_train_digital art_add_0_2.png",
        ]
    ):
        save_picture(tmp_path / name, np.full((32, 32), i))
    data, report = synthetic_pictures(tmp_path, CLASSES)
    assert data.inputs.shape == (4, 32, 32, 1)
    # In the order of their names.
    assert data.inputs[:, 0, 0, 0].tolist() == [5, 0, 3, 2]
    assert data.labels.tolist() == [0, 1, 0, 0]
    assert report.left_out == (("scar_train_0_1.png", "label 'scar' is not a class"),)


def test_grey_and_rgb_pictures_mix(tmp_path):
    save_picture(tmp_path / "cat_train_0_0.png", np.full((4, 4), 7))
    save_picture(tmp_path / "cat_train_0_1.png", np.full((4, 4, 3), 9))
    data, _ = synthetic_pictures(tmp_path, CLASSES)
    assert data.inputs.shape == (2, 4, 4, 3)
    assert data.inputs[:, 0, 0].tolist() == [[7, 7, 7], [9, 9, 9]]


def test_png_bytes_cut_anywhere_never_load(tmp_path):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    save_picture(tmp_path / "car_train_0_0.png", np.zeros((32, 32, 3)))
    lengths = range(0, len(content) - 12, 97)  # the last 12 bytes are an empty chunk
    for length in lengths:
        (tmp_path / f"cat_train_0_{length}.png").write_bytes(content[:length])
    data, report = synthetic_pictures(tmp_path, CLASSES)
    assert len(data.labels) == 1 and len(report.left_out) == len(lengths)


def write_synthetic(folder, clips, rate=16_000):
    """A folder as stage 1 leaves it, of (label, seed, samples)."""
    samples = []
    for label, seed, count in clips:
        file = f"{label}/{label}_{seed:05d}.wav"
        write(folder / file, seed, count, rate)
        samples.append(artifacts.Sample(file, label, label, seed, None, "voices", 0))
    artifacts.append_samples(folder, samples)


def test_synthetic_clips_become_features_as_the_real_ones_do(fsdd, tmp_path):
    """At 16 kHz, and all in the frames of the real clips, of which the longest has 17.

    A longer clip is cut to 1,359 samples of 8 kHz, the most that make 17 frames.
    """
    source = sources.load("fsdd", str(fsdd), features={"num_mels": 4})
    write_synthetic(tmp_path, (("3", 0, 1600), ("7", 1, 5000), ("0", 2, 2716)))
    data, report = load_synthetic(tmp_path, source)
    features, lengths = data.inputs
    assert features.shape == (3, 17, 4) and lengths.tolist() == [11, 17, 17]
    assert data.labels.tolist() == [3, 7, 0] and data.clients is None
    assert data.class_names == source.train.class_names
    assert str(report) == "3 synthetic clips loaded"
    settings = source.sounds.settings
    for row, length, name in zip(
        features, lengths, ("3/3_00000", "7/7_00001", "0/0_00002"), strict=True
    ):
        wave = audio.read(tmp_path / f"{name}.wav", 8000)[:1359]
        np.testing.assert_array_equal(row[:length], audio.compute(wave, settings))
        assert not row[length:].any()

    both = datasets.concatenate(source.train, data)
    assert both.labels.tolist() == [*source.train.labels, 3, 7, 0]
    for ours, real, made in zip(
        both.inputs, source.train.inputs, data.inputs, strict=True
    ):
        np.testing.assert_array_equal(ours, np.concatenate([real, made]))

    # The source's options are the one statement of what features are.
    other = sources.load("fsdd", str(fsdd), features={"num_mels": 6, "hop": 160})
    made = load_synthetic(tmp_path, other)[0].inputs[0]
    assert made.shape[1:] == other.train.inputs[0].shape[1:] == (9, 6)


def test_broken_synthetic_clips_are_reported_and_left_out(fsdd, tmp_path):
    cache = str(tmp_path / "cache")
    source = sources.load("fsdd", str(fsdd), features={"num_mels": 4}, cache=cache)
    folder = tmp_path / "synthetic"
    write_synthetic(folder, [(str(digit), digit, 1600) for digit in range(5)])
    whole, _ = load_synthetic(folder, source)
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept == 6 + 5
    content = (folder / "0/0_00000.wav").read_bytes()
    (folder / "0/0_00000.wav").write_bytes(content[:-100])
    (folder / "2/2_00002.wav").write_bytes(b"no sound")
    (folder / "3/3_00003.wav").unlink()
    line = artifacts.Sample("4/x.wav", "ten", "", 0, None, "voices")
    artifacts.append_samples(folder, [line])
    data, report = load_synthetic(folder, source)
    assert data.labels.tolist() == [1, 4]
    for ours, all_five in zip(data.inputs, whole.inputs, strict=True):
        np.testing.assert_array_equal(ours, all_five[[1, 4]])
    assert report.loaded == 2 and dict(report.left_out) == {
        "4/x.wav": "label 'ten' is not a class",
        "0/0_00000.wav": "truncated, or no WAV file",
        "2/2_00002.wav": "truncated, or no WAV file",
        "3/3_00003.wav": "no such file",
    }

    assert "2 synthetic clips loaded; 4 left out:" in str(report)
    one = (folder / "1/1_00001.wav").read_bytes()
    # Content that only the decoder can refuse.
    (folder / "1/1_00001.wav").write_bytes(content[:8] + b"WAVE" + content[12:20] * 99)
    silent = struct.pack("<4sI4s", b"RIFF", 4, b"WAVE")
    (folder / "4/4_00004.wav").write_bytes(silent)
    with pytest.raises(UserError, match="none of 6 clips could be used.*generate.spee"):
        load_synthetic(folder, source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no clips: make them with `python"):
        load_synthetic(tmp_path / "empty", source)

    # A clip that is whole, but another one than its line has the digest of.
    line = artifacts.read_manifest(folder)[1]
    content = one
    (folder / line.file).write_bytes(content)
    line = line._replace(sha256=artifacts.digest(content))
    artifacts.write_manifest(folder, [line])
    assert load_synthetic(folder, source)[1].left_out == ()
    (folder / line.file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="1/1_00001.wav: changed since it was made: "):
        load_synthetic(folder, source)
    with pytest.raises(UserError, match="is missing: make it with.*generate.speech"):
        load_synthetic(tmp_path / "none", source)


def test_synthetic_clips_outside_the_folder_are_refused(fsdd, tmp_path):
    source = sources.load("fsdd", str(fsdd), features={"num_mels": 4})
    write_synthetic(tmp_path / "synthetic", [("3", 0, 1600)])
    write(tmp_path / "secret.wav", 0)
    line = artifacts.Sample("../secret.wav", "3", "", 0, None, "voices")
    artifacts.append_samples(tmp_path / "synthetic", [line])
    with pytest.raises(UserError, match="line 2"):
        load_synthetic(tmp_path / "synthetic", source)
