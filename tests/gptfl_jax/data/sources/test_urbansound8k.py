import numpy as np
import pytest
from ml_collections import ConfigDict

from gptfl_jax.data import audio, sources
from gptfl_jax.errors import UserError

from ..conftest import SETTINGS, SMALL, by_config, check_rows, write


def test_urbansound8k(tmp_path, capsys):
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
    check_rows(source.train, files[:2])
    said = capsys.readouterr().out
    assert said == "left out 1 clips shorter than 0.1 s, kept 3\n"
    check_rows(source.test, files[3:])
    whole = by_config("urbansound8k", tmp_path, segment_s=0)
    check_rows(whole.test, files[3:])
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


def test_clips_in_segments(tmp_path):
    """Of 0.3 s, one starting every 0.1 s: of clips of 0.5, 0.2, 0.4 and 0.25 s."""
    seconds = (0.5, 0.2, 0.4, 0.25)
    lines = ["slice_file_name,fsID,start,end,fold,classID"]
    files = []
    for number, length in enumerate(seconds):
        fold = (1, 1, 10, 10)[number]
        lines.append(f"{number}.wav,{number},0.0,{length},{fold},{number}")
        files.append(tmp_path / "audio" / f"fold{fold}" / f"{number}.wav")
        write(files[-1], number, samples=round(16_000 * length))
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "UrbanSound8K.csv").write_text("\n".join(lines))
    options = {"features": SMALL, "segment_s": 0.3, "segment_hop_s": 0.1}
    train, test = sources.load("urbansound8k", str(tmp_path), **options)[:2]

    def segment(file, start, duration=0.3):
        wave = audio.read(file, start_s=start, duration_s=duration)
        return audio.compute(wave, SETTINGS)

    features, lengths = train.inputs
    assert train.labels.tolist() == [0, 0, 0, 1]
    assert train.clients.tolist() == ["0", "0", "0", "1"]
    assert lengths.tolist() == [31, 31, 31, 21]
    for number, start in enumerate((0.0, 0.1, 0.2)):
        np.testing.assert_array_equal(features[number], segment(files[0], start))
    features, lengths = test.inputs
    assert features.shape == (2, 2, 31, 4)
    assert lengths.tolist() == [[31, 31], [26, 0]] and test.labels.tolist() == [2, 3]
    np.testing.assert_array_equal(features[0, 1], segment(files[2], 0.1))
    np.testing.assert_array_equal(features[1, 0, :26], segment(files[3], 0.0))
    assert not features[1, 1].any() and not features[1, 0, 26:].any()
