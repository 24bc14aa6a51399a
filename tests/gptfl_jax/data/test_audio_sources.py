"""Each source on a small folder of the layout in which the data set is released."""

import hashlib
import http.server
import io
import os
import pathlib
import struct
import tarfile
import threading

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from gptfl_jax import artifacts, launch
from gptfl_jax.data import audio, audio_sources, noise, sources
from gptfl_jax.data.audio import FeatureSettings
from gptfl_jax.errors import UserError

SMALL = {"num_mels": 4, "fft_size": 256}
SETTINGS = FeatureSettings(**SMALL)


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


# FSDD -------------------------------------------------------------------------------


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


def test_fsdd_splits_by_take_or_speaker(fsdd):
    options = {"features": {"num_mels": 4}}
    source = sources.load("fsdd", str(fsdd), **options)
    assert source.train.labels.tolist() == [0, 1, 3, 7]
    assert source.train.clients.tolist() == ["bert", "cleo", "anna", "bert"]
    assert source.test.labels.tolist() == [3, 7]
    assert source.train.class_names == tuple("0123456789")
    assert source.train.inputs[0].shape == (4, 17, 4) and source.mean == ()
    # At 8 kHz a frame every 10 ms: 1 + samples // 80.
    assert source.train.inputs[1].tolist() == [17, 14, 11, 12]
    inside = sources.load("fsdd", str(fsdd / "recordings"), **options)
    np.testing.assert_array_equal(inside.test.inputs[0], source.test.inputs[0])

    held = sources.load("fsdd", str(fsdd), test_speakers=("bert",), **options)
    assert held.test.labels.tolist() == [0, 7, 7]
    assert set(held.test.clients) == {"bert"}
    assert set(held.train.clients) == {"anna", "cleo"}
    two = sources.load(
        "fsdd", str(fsdd), speakers=("anna", "bert"), test_speakers="bert", **options
    )
    assert set(two.train.clients) == {"anna"} and set(two.test.clients) == {"bert"}
    with pytest.raises(UserError, match="test_speakers: .* has no cleo; it has anna"):
        sources.load("fsdd", str(fsdd), speakers=("anna",), test_speakers=("cleo",))
    with pytest.raises(UserError, match="has no dora; it has anna, bert, cleo"):
        sources.load("fsdd", str(fsdd), test_speakers=("dora",))
    rows = np.asarray([False, True, True, False])
    some = sources.select(source.train, rows)
    np.testing.assert_array_equal(some.inputs[0], source.train.inputs[0][rows])
    assert some.inputs[1].tolist() == [14, 11] and some.labels.tolist() == [1, 3]


def test_options_are_checked(fsdd, tmp_path):
    with pytest.raises(UserError, match="features does not take mels; it takes kind"):
        sources.load("fsdd", str(fsdd), features={"mels": 3})
    with pytest.raises(UserError, match="flaws does not take snr; it takes snr_db"):
        sources.load("fsdd", str(fsdd), flaws={"snr": 3})
    with pytest.raises(UserError, match="fsdd holds no pictures; leave them 0"):
        sources.load("fsdd", str(fsdd), image_size=32)
    with pytest.raises(UserError, match="does not take takes; it takes cache, down"):
        sources.load("fsdd", str(fsdd), takes=3)
    with pytest.raises(UserError, match=r"no \*_\*_\*.wav, .*free-spoken-digit"):
        sources.load("fsdd", str(tmp_path))
    with pytest.raises(UserError, match="the training set is empty"):
        everyone = ("anna", "bert", "cleo")
        sources.load("fsdd", str(fsdd), test_speakers=everyone)


def test_flaws_are_put_into_the_training_set(fsdd, tmp_path):
    plain = sources.load("fsdd", str(fsdd))
    write(tmp_path / "sounds" / "hum.wav", 5)
    flaws = {
        **{"snr_db": (-10, 10), "snr_shares": (0.34, 0.33), "seed": 3},
        **{"background": str(tmp_path / "sounds")},
    }
    noisy = sources.load("fsdd", str(fsdd), flaws=flaws, cache=str(tmp_path / "cache"))
    np.testing.assert_array_equal(noisy.test.inputs[0], plain.test.inputs[0])
    np.testing.assert_array_equal(noisy.train.labels, plain.train.labels)
    levels = noise.level_of_client(3, (-10, 10), (0.34, 0.33), seed=3)
    level = dict(zip(("anna", "bert", "cleo"), levels, strict=True))
    settings = FeatureSettings(
        sample_rate_hz=8000, num_mels=40, fft_size=256, hop=80, max_duration_s=0.8
    )
    hum = audio.read(tmp_path / "sounds" / "hum.wav", 8000)
    names = ("0_bert_49", "1_cleo_30", "3_anna_5", "7_bert_12")
    for index, name in enumerate(names):
        wave = audio.read(fsdd / "recordings" / f"{name}.wav", 8000)
        snr_db = level[name.split("_")[1]]
        if not np.isnan(snr_db):
            added = noise.Noise(snr_db, (3, index, 0), "a file")
            wave = noise.add_noise(wave, added, hum)
        expected = audio.compute(wave, settings)
        length = noisy.train.inputs[1][index]
        np.testing.assert_array_equal(noisy.train.inputs[0][index, :length], expected)
    with pytest.raises(UserError, match="holds no recordings"):
        empty = {"snr_db": (3,), "background": str(tmp_path / "none")}
        sources.load("fsdd", str(fsdd), flaws=empty)

    wrong = sources.load("fsdd", str(fsdd), flaws={"label_noise": (1.0,), "seed": 1})
    assert (wrong.train.labels != plain.train.labels).all()
    np.testing.assert_array_equal(wrong.test.labels, plain.test.labels)
    np.testing.assert_array_equal(
        wrong.train.labels,
        noise.noisy_labels(plain.train.labels, plain.train.clients, 10, (1.0,), seed=1),
    )


def test_the_real_fsdd():
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    folder = pathlib.Path(os.environ["GPTFL_DATA_DIR"]) / "fsdd"
    found = audio_sources._digest_of_files(audio_sources._FSDD, folder)
    assert found == audio_sources._FSDD.digest
    source = sources.load("fsdd", str(folder), features={"hop": 400, "num_mels": 8})
    assert np.bincount(source.train.labels).tolist() == [270] * 10
    assert np.bincount(source.test.labels).tolist() == [30] * 10
    speakers = ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert np.unique(source.train.clients).tolist() == speakers
    features, lengths = source.train.inputs
    assert features.shape == (2700, 17, 8) and lengths.min() >= 3
    real = np.arange(17) < lengths[:, None]
    # Standardised: over time each band has mean 0 and deviation 1.
    np.testing.assert_allclose(features.sum(1), 0, atol=1e-3)
    square = np.where(real[..., None], features, 0) ** 2
    np.testing.assert_allclose(square.sum(1) / lengths[:, None], 1, atol=0.01)


# Synthetic clips --------------------------------------------------------------------


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
    data, report = sources.load_synthetic(tmp_path, source)
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

    both = sources.concatenate(source.train, data)
    assert both.labels.tolist() == [*source.train.labels, 3, 7, 0]
    for ours, real, made in zip(
        both.inputs, source.train.inputs, data.inputs, strict=True
    ):
        np.testing.assert_array_equal(ours, np.concatenate([real, made]))

    # The source's options are the one statement of what features are.
    other = sources.load("fsdd", str(fsdd), features={"num_mels": 6, "hop": 160})
    made = sources.load_synthetic(tmp_path, other)[0].inputs[0]
    assert made.shape[1:] == other.train.inputs[0].shape[1:] == (9, 6)


def test_broken_synthetic_clips_are_reported_and_left_out(fsdd, tmp_path):
    cache = str(tmp_path / "cache")
    source = sources.load("fsdd", str(fsdd), features={"num_mels": 4}, cache=cache)
    folder = tmp_path / "synthetic"
    write_synthetic(folder, [(str(digit), digit, 1600) for digit in range(5)])
    whole, _ = sources.load_synthetic(folder, source)
    kept = len(list((tmp_path / "cache").rglob("*.npy")))
    assert kept == 6 + 5
    content = (folder / "0/0_00000.wav").read_bytes()
    (folder / "0/0_00000.wav").write_bytes(content[:-100])
    (folder / "2/2_00002.wav").write_bytes(b"no sound")
    (folder / "3/3_00003.wav").unlink()
    line = artifacts.Sample("4/x.wav", "ten", "", 0, None, "voices")
    artifacts.append_samples(folder, [line])
    data, report = sources.load_synthetic(folder, source)
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
        sources.load_synthetic(folder, source)

    # A clip that is whole, but another one than its line has the digest of.
    line = artifacts.read_manifest(folder)[1]
    content = one
    (folder / line.file).write_bytes(content)
    line = line._replace(sha256=artifacts.digest(content))
    artifacts.write_manifest(folder, [line])
    assert sources.load_synthetic(folder, source)[1].left_out == ()
    (folder / line.file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="1/1_00001.wav: changed since it was made: "):
        sources.load_synthetic(folder, source)
    with pytest.raises(UserError, match="is missing: make it with.*generate.speech"):
        sources.load_synthetic(tmp_path / "none", source)


def test_synthetic_clips_outside_the_folder_are_refused(fsdd, tmp_path):
    source = sources.load("fsdd", str(fsdd), features={"num_mels": 4})
    write_synthetic(tmp_path / "synthetic", [("3", 0, 1600)])
    write(tmp_path / "secret.wav", 0)
    line = artifacts.Sample("../secret.wav", "3", "", 0, None, "voices")
    artifacts.append_samples(tmp_path / "synthetic", [line])
    with pytest.raises(UserError, match="line 2"):
        sources.load_synthetic(tmp_path / "synthetic", source)


# Speech Commands --------------------------------------------------------------------

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


def test_speech_commands_split_by_their_lists(speech_commands):
    source = sources.load("speech_commands", str(speech_commands), features=SMALL)
    check_rows(source.train, [speech_commands / name for name in SPOKEN["train"]])
    check_rows(source.test, [speech_commands / name for name in SPOKEN["testing"]])
    check_rows(
        by_config("speech_commands", speech_commands).test,
        [speech_commands / name for name in SPOKEN["testing"]],
    )
    names = source.train.class_names
    assert len(names) == 36 and names[1] == "bed" and names[-2:] == ("zero", "silence")
    assert source.train.labels.tolist() == [1, 1, 34]
    assert source.test.labels.tolist() == [33, 34]
    assert source.train.clients.tolist() == ["0a0b0c0d", "1a1b1c1d", "0a0b0c0d"]
    other = sources.load(
        "speech_commands",
        str(speech_commands),
        features=SMALL,
        test_list="validation",
    )
    check_rows(other.train, [speech_commands / name for name in SPOKEN["train"]])
    check_rows(other.test, [speech_commands / name for name in SPOKEN["validation"]])
    with pytest.raises(UserError, match="test_list = 'test': takes testing or valid"):
        sources.load("speech_commands", str(speech_commands), test_list="test")


def test_speech_commands_silence(speech_commands):
    source = sources.load(
        "speech_commands",
        str(speech_commands),
        features={**SMALL, "standardise": False},
        silence=4,
        seed=2,
    )
    silent = source.train.labels == 35
    assert silent.sum() == 12 and (source.test.labels == 35).sum() == 8
    assert set(source.train.clients[silent]) == {"0a0b0c0d", "1a1b1c1d"}
    assert set(source.test.clients) == {"3a3b3c3d"}
    # Each is a second of its part of the 10 s of noise, at a sample of its own.
    recording = speech_commands / "_background_noise_" / "rain.wav"
    for part, begin, end in ((source.train, 0, 7), (source.test, 8, 9)):
        features, lengths = part.inputs
        rows = np.flatnonzero(part.labels == 35)
        assert (lengths[rows] == 101).all()
        assert len({features[row].tobytes() for row in rows}) == len(rows)
        for number, row in enumerate(rows):
            generator = np.random.default_rng([2, int(begin == 8), number])
            assert generator.integers(1) == 0
            start = generator.uniform(begin, end)
            wave = audio.read(recording, start_s=start, duration_s=1.0)
            expected = audio.log_mel(wave, SETTINGS)
            np.testing.assert_array_equal(features[row], expected)


def test_speech_commands_silence_needs_noise(speech_commands, tmp_path):
    for part in ("testing", "validation"):
        (tmp_path / f"{part}_list.txt").write_text("")
    with pytest.raises(UserError, match="silence=0 or complete the data set"):
        sources.load("speech_commands", str(tmp_path), silence=0.1)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory, speech_commands):
    """Serves the small data set as an archive, and gives its address and checksum."""
    folder = tmp_path_factory.mktemp("served")
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as tar:
        tar.add(speech_commands, arcname=".")
    with tarfile.open(folder / "evil.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))

    def handler(*args):
        return QuietHandler(*args, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def release(server, name="archive.tar.gz"):
    folder, address = server
    file = folder / name
    content = file.read_bytes() if file.exists() else b""
    return audio_sources._Release(
        f"{address}/{name}", "sha256", hashlib.sha256(content).hexdigest()
    )


def test_download(server, speech_commands, tmp_path, monkeypatch):
    monkeypatch.setattr(audio_sources, "_SPEECH_COMMANDS", release(server))
    with pytest.raises(UserError, match="config.data.options.download=True"):
        sources.load("speech_commands", str(tmp_path))
    folder = tmp_path / "data"
    options = {"download": True, "features": SMALL}
    source = sources.load("speech_commands", str(folder), **options)
    check_rows(source.train, [speech_commands / name for name in SPOKEN["train"]])
    assert [path.name for path in folder.iterdir()] == ["speech_commands_v0.02"]
    # What is there is not downloaded again.
    monkeypatch.setattr(audio_sources, "_download", None)
    again = sources.load("speech_commands", str(folder), **options)
    np.testing.assert_array_equal(again.train.inputs[0], source.train.inputs[0])


def test_download_whose_files_are_checked(server, fsdd, tmp_path, monkeypatch):
    """GitHub packs a repository on demand, so the checksum is of the recordings."""
    folder, _ = server
    with tarfile.open(folder / "fsdd.tar.gz", "w:gz") as tar:
        tar.add(fsdd, arcname="free-spoken-digit-dataset-master")
    files = {"digest": "0" * 64, "files": "recordings/*.wav"}
    wanted = release(server, "fsdd.tar.gz")._replace(**files)
    monkeypatch.setattr(audio_sources, "_FSDD", wanted)
    with pytest.raises(UserError, match="sha256 of recordings/.*should be 0000"):
        sources.load("fsdd", str(tmp_path), download=True)
    assert not list(tmp_path.iterdir())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted((fsdd / "recordings").glob("*.wav"))
    ]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    monkeypatch.setattr(audio_sources, "_FSDD", wanted._replace(digest=digest))
    got = sources.load("fsdd", str(tmp_path), download=True, test_speakers="bert")
    assert [path.name for path in tmp_path.iterdir()] == ["free-spoken-digit-dataset"]
    assert set(got.test.clients) == {"bert"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("archive.tar.gz", {"digest": "0" * 64}, "and should be 0000"),
        ("gone.tar.gz", {}, "cannot be downloaded to .* 404"),
        ("evil.tar.gz", {}, "cannot be downloaded to .* outside"),
    ],
)
def test_bad_downloads_leave_nothing(server, tmp_path, name, changes, message):
    broken = release(server, name)._replace(**changes)
    with pytest.raises(UserError, match=message):
        audio_sources._download(broken, tmp_path / "inside" / "target")
    assert not list((tmp_path / "inside").iterdir())
    assert not (tmp_path / "outside.txt").exists()


# ESC-50 and UrbanSound8K ------------------------------------------------------------


def test_esc50(tmp_path):
    root = tmp_path / "ESC-50-master"
    rows = (
        ("1-100-A-0.wav", 1, 0, "dog", "True", 100, "A"),
        ("1-100-B-0.wav", 1, 0, "dog", "True", 100, "B"),
        ("2-7-A-49.wav", 2, 49, "hand_saw", "False", 7, "A"),
        ("5-9-A-1.wav", 5, 1, "rooster", "True", 9, "A"),
    )
    header = "filename,fold,target,category,esc10,src_file,take\n"
    table = header + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "esc50.csv").write_text(table)
    files = [root / "audio" / row[0] for row in rows]
    for seed, file in enumerate(files):
        write(file, seed, 4410, rate=44_100)
    source = sources.load("esc50", str(tmp_path), features=SMALL)
    check_rows(source.train, files[:3])
    check_rows(source.test, files[3:])
    # The release's `target` is the label.
    assert source.train.labels.tolist() == [0, 0, 49]
    assert source.test.labels.tolist() == [1] and source.train.num_classes == 50
    assert source.train.clients.tolist() == ["100", "100", "7"]
    check_rows(by_config("esc50", tmp_path).test, files[3:])
    folds = sources.load("esc50", str(root), features=SMALL, test_folds=(1, 2))
    check_rows(folds.train, files[3:])
    with pytest.raises(UserError, match=r"test folds are of 1 to 5: \(6,\)"):
        sources.load("esc50", str(root), test_folds=(6,))
    (root / "meta" / "esc50.csv").write_text("filename,fold\na.wav,1\n")
    with pytest.raises(UserError, match="esc50.csv: has no column category, src_file"):
        sources.load("esc50", str(root))
    (root / "meta" / "esc50.csv").write_text(table)
    files[0].unlink()
    for name in ("../../x.wav", "/x.wav", "a/x.wav", ".."):
        changed = table.replace("1-100-A-0.wav", name)
        (root / "meta/esc50.csv").write_text(changed)
        with pytest.raises(UserError, match=rf"line 2: filename = '{name}': is no f"):
            sources.load("esc50", str(root))
    (root / "meta/esc50.csv").write_text(table)
    with pytest.raises(UserError, match="1-100-A-0.wav: cannot be read"):
        sources.load("esc50", str(root), features=SMALL)


def test_urbansound8k(tmp_path):
    root = tmp_path / "UrbanSound8K"
    rows = (
        ("100-3-0-0.wav", 100, 0.0, 0.1, 1, 1, 3, "dog_bark"),
        ("100-3-0-1.wav", 100, 1.0, 1.1, 1, 1, 3, "dog_bark"),
        ("7-9-1-0.wav", 7, 5.5, 5.55, 2, 4, 9, "street_music"),
        ("8-0-1-0.wav", 8, 0.0, 0.1, 1, 10, 0, "air_conditioner"),
    )
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    (root / "metadata").mkdir(parents=True)
    (root / "metadata" / "UrbanSound8K.csv").write_text(
        header + "".join(",".join(map(str, row)) + "\n" for row in rows)
    )
    files = [root / "audio" / f"fold{row[5]}" / row[0] for row in rows]
    for seed, file in enumerate(files):
        write(file, seed)
    source = sources.load("urbansound8k", str(tmp_path), features=SMALL)
    check_rows(source.train, files[:2])  # the third is shorter than 0.1 s
    check_rows(source.test, files[3:])
    check_rows(by_config("urbansound8k", tmp_path).test, files[3:])
    every = sources.load(
        "urbansound8k", str(root), features=SMALL, min_duration_s=0, test_folds=[10]
    )
    check_rows(every.train, files[:3])
    # As a config hands them over.
    config = ConfigDict({"features": SMALL, "test_folds": (10,), "min_duration_s": 0})
    same = sources.load("urbansound8k", str(root), **config)
    np.testing.assert_array_equal(same.train.inputs[0], every.train.inputs[0])
    assert every.train.labels.tolist() == [3, 3, 9]
    for (*_, number, name), label in zip(rows, [3, 3, 9, 0], strict=True):
        assert number == label and every.train.class_names[label] == name
    assert every.train.clients.tolist() == ["100", "100", "7"]
    with pytest.raises(UserError, match="not UrbanSound8K; get it from https://zenodo"):
        sources.load("urbansound8k", str(tmp_path / "audio"))


# CREMA-D ----------------------------------------------------------------------------


def test_crema_d(tmp_path):
    # Folds of 1001-1019, 1020-1037, ..., 1074-1091.
    names = (
        *("1001_DFA_ANG_XX", "1019_IEO_SAD_HI", "1020_IEO_NEU_XX", "1020_ITH_FEA_XX"),
        *("1076_MTI_SAD_XX", "1091_WSI_HAP_XX"),
    )
    files = {name: tmp_path / "AudioWAV" / f"{name}.wav" for name in names}
    for seed, file in enumerate(files.values()):
        write(file, seed)
    files["1076_MTI_SAD_XX"].write_bytes(b"")  # as it is in the release
    source = sources.load("crema_d", str(tmp_path), features=SMALL)
    check_rows(source.test, [files[name] for name in names[:2]])
    check_rows(source.train, [files[names[2]], files[names[5]]])
    assert source.test.labels.tolist() == [3, 2]
    assert source.train.labels.tolist() == [0, 1]
    assert source.train.clients.tolist() == ["1020", "1091"]
    assert source.train.class_names == ("neutral", "happy", "sad", "anger")

    last = sources.load(
        "crema_d",
        str(tmp_path),
        features=SMALL,
        test_fold=5,
        emotions=["fear", "happy", "sad"],
    )
    assert last.test.labels.tolist() == [1] and last.train.labels.tolist() == [2, 0]

    table = '"","FileName","VoiceVote","MultiModalVote","MultiModalLevel"\n'
    votes = ("A", "N", "N", "S", "S", "A:H")
    for index, (name, vote) in enumerate(zip(names, votes, strict=True)):
        table += f'"{index}","{name}","S","{vote}","50"\n'
    (tmp_path / "processedResults").mkdir()
    (tmp_path / "processedResults" / "summaryTable.csv").write_text(table)
    voted = sources.load("crema_d", str(tmp_path), features=SMALL, labels="voted")
    assert voted.test.labels.tolist() == [3, 0]
    check_rows(voted.train, [files[name] for name in names[2:4]])
    assert voted.train.labels.tolist() == [0, 2]
    with pytest.raises(UserError, match="has no joy; it has anger, disgust"):
        sources.load("crema_d", str(tmp_path), emotions=("joy",))
    with pytest.raises(UserError, match="labels = 'felt': takes acted or voted"):
        sources.load("crema_d", str(tmp_path), labels="felt")
    with pytest.raises(UserError, match="test folds are of 1 to 5"):
        sources.load("crema_d", str(tmp_path), test_fold=0)
