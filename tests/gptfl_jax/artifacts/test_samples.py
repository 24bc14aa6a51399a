"""The manifest gives back what was appended."""

import json

import numpy as np
import pytest

from gptfl_jax import artifacts

from .common import SAMPLES


def test_manifest_gives_back_what_was_appended(tmp_path):
    assert artifacts.read_manifest(tmp_path) == []
    artifacts.append_samples(tmp_path, SAMPLES[:1])
    artifacts.append_samples(tmp_path, [])
    artifacts.append_samples(tmp_path, SAMPLES[1:])
    assert artifacts.read_manifest(tmp_path) == SAMPLES
    first = (tmp_path / "manifest.jsonl").read_text().splitlines()[0]
    assert json.loads(first) == {
        "file": "seven/seven_0.png",
        "label": "seven",
        "prompt": "a thin seven",
        "seed": 17,
        "guidance": 7.5,
        "model": "glyphs",
    }


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_torn_last_line_is_left_out_and_then_cut_off(tmp_path, cut):
    artifacts.append_samples(tmp_path, SAMPLES)
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert artifacts.read_manifest(tmp_path) == SAMPLES[:1]
    artifacts.append_samples(tmp_path, SAMPLES[1:])
    assert artifacts.read_manifest(tmp_path) == SAMPLES
    assert path.read_text().count("\n") == 2


def test_torn_line_longer_than_the_search_step_is_cut_off(tmp_path):
    artifacts.append_samples(tmp_path, SAMPLES[:1])
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write("x" * 200_000)
    artifacts.append_samples(tmp_path, SAMPLES[1:])
    assert artifacts.read_manifest(tmp_path) == SAMPLES


def test_records_are_lines_and_torn_ones_are_left_out(tmp_path):
    path = tmp_path / "new" / "records.jsonl"
    assert artifacts.read_records(path) == []
    first = {"class": "été", "numbers": (0, 1), "count": np.int32(3)}
    artifacts.append_records(path, [first, {}])
    with open(path, "a") as file:
        file.write('[1]\nno JSON\n{"torn": ')
    whole = [{"class": "été", "numbers": [0, 1], "count": 3}, {}]
    assert artifacts.read_records(path) == whole
    artifacts.append_records(path, [{"last": None}])
    assert artifacts.read_records(path) == [*whole, {"last": None}]


def test_sample_listed_twice_counts_once(tmp_path):
    artifacts.append_samples(tmp_path, [*SAMPLES, SAMPLES[0]])
    assert artifacts.read_manifest(tmp_path) == SAMPLES


@pytest.mark.parametrize(
    "file",
    [
        "../outside.png",
        "seven/../../outside.png",
        "/etc/passwd",
        "seven\\..\\..\\outside.png",
        "seven/nul\0.png",
        "nul\0/a.png",
        "seven/./../../outside.png",
        "..",
        "",
        "linked_folder/outside.png",
        "linked_file.png",
    ],
)
def test_manifest_refuses_a_path_that_leaves_the_folder(tmp_path, file):
    folder = tmp_path / "synthetic"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(b"")
    (folder / "linked_folder").symlink_to(tmp_path)
    (folder / "linked_file.png").symlink_to(tmp_path / "outside.png")
    artifacts.append_samples(folder, [SAMPLES[0], SAMPLES[1]._replace(file=file)])
    with pytest.raises(
        artifacts.ManifestError, match="manifest.jsonl line 2: .*outside"
    ):
        artifacts.read_manifest(folder)


def test_manifest_follows_links_that_stay_inside(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    samples = [SAMPLES[0]._replace(file="link/a.png")]
    artifacts.append_samples(tmp_path, samples)
    assert artifacts.read_manifest(tmp_path) == samples


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "3",
        '{"file": "a.png"}',
        json.dumps({**SAMPLES[0]._asdict(), "extra": 1}),
        json.dumps({**SAMPLES[0]._asdict(), "file": 3}),
        json.dumps({**SAMPLES[0]._asdict(), "seed": "x"}),
        json.dumps({**SAMPLES[0]._asdict(), "guidance": "x"}),
    ],
)
def test_manifest_names_a_line_that_is_not_a_sample(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(artifacts.ManifestError, match="manifest.jsonl line 1"):
        artifacts.read_manifest(tmp_path)
