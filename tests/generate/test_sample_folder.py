import hashlib
import os

import numpy as np
import pytest

from generate import sample_folder
from gptfl_jax import artifacts
from gptfl_jax.artifacts import Sample
from gptfl_jax.errors import UserError


def planned(*files):
    return [Sample(file, "a", "an a", 1, None, "m") for file in files]


def without_digests(folder):
    """The lines of a manifest but for their digests, which are those of the files."""
    lines = artifacts.read_manifest(folder)
    for line in lines:
        content = (folder / line.file).read_bytes()
        assert line.sha256 == hashlib.sha256(content).hexdigest()
    return [line._replace(sha256=None) for line in lines]


def folder_of(path, files, complete=lambda path: path.exists(), **settings):
    return sample_folder.SampleFolder(path, planned(*files), settings, complete)


def encode(row: np.ndarray) -> bytes:
    return bytes(row)


@pytest.mark.parametrize(
    "classes, folders",
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["hot dog", "cat/dog", "a\\b"], ["hot_dog", "cat_dog", "a_b"]),
        (["a b", "a_b", "A B", "a/b-1"], ["a_b", "a_b-1", "A_B-2", "a_b-1-3"]),
        (["..", ".hidden", "-rf", "", "?"], ["class", "hidden", "rf", "class-3", "_"]),
        (["manifest.jsonl", "run.json"], ["manifest.jsonl-0", "run.json-1"]),
        (["../../etc/passwd"], ["_.._etc_passwd"]),
        (["crème brûlée", "茶"], ["crème_brûlée", "茶"]),
        (["x" * 300], ["x" * 80]),
        (["茶" * 80, "茶" * 81], ["茶" * 26, "茶" * 26 + "-1"]),
        (["caf\udce9"], ["caf_"]),  # of bytes that are no UTF-8
    ],
)
def test_folder_names(classes, folders):
    found = sample_folder.folder_names(classes)
    assert found == dict(zip(classes, folders, strict=True))
    # A sample's file, while it is written, in bytes.
    assert all(len(f".{name}_00000.png.4194304".encode()) < 255 for name in folders)


def test_lines_and_files_decide_what_is_made(tmp_path):
    files = ["a/0", "a/1", "a/2", "a/3"]
    folder = folder_of(tmp_path, files, steps=2)
    assert folder.open() == set()
    for name in ("a/0", "a/1", "a/2"):
        artifacts.write_bytes(tmp_path / name, b"x")
    # a/2 has no line yet; a/3 has a line but no file; the last line is torn.
    artifacts.append_samples(tmp_path, planned("a/3", "a/1", "a/0"))
    with open(tmp_path / "manifest.jsonl", "ab") as file:
        file.write(b'{"file": "a/2", "la')
    (tmp_path / ".manifest.jsonl.123").write_bytes(b"left over")
    (tmp_path / "a" / ".2.99").write_bytes(b"left over")
    (tmp_path / "a" / ".keep").write_bytes(b"not ours")
    (tmp_path / "a" / ".profile.20240101").write_bytes(b"not ours")
    (tmp_path / "a" / f".{'0' * 16}.gptfl-part").write_bytes(b"left over")
    folder = folder_of(tmp_path, files, steps=2)
    assert folder.open() == {"a/0", "a/1"}
    assert artifacts.read_manifest(tmp_path) == planned("a/0", "a/1")
    assert sorted(os.listdir(tmp_path)) == ["a", "manifest.jsonl", "settings.json"]
    kept = [".keep", ".profile.20240101", "0", "1", "2"]
    assert sorted(os.listdir(tmp_path / "a")) == kept
    with pytest.raises(UserError, match="2 samples are missing .the first: a/2"):
        folder.close()


def test_close_puts_lines_in_order(tmp_path):
    folder = folder_of(tmp_path, ["a/0", "a/1", "a/2"])
    folder.open()
    for name in ("a/2", "a/0", "a/1"):
        artifacts.write_bytes(tmp_path / name, b"x")
        artifacts.append_samples(tmp_path, planned(name))
    folder.close()
    assert artifacts.read_manifest(tmp_path) == planned("a/0", "a/1", "a/2")


def make(folder):
    """What a run does, with one byte a sample."""
    made = folder.open()
    for sample in folder.planned:
        if sample.file not in made:
            artifacts.write_bytes(folder.folder / sample.file, b"x")
            artifacts.append_samples(folder.folder, [sample])
    folder.close()


def test_changed_samples_are_made_again(tmp_path, capsys):
    files = [f"a/{number}" for number in range(5)]

    def write(numbers):
        with sample_folder.SampleWriter(tmp_path, encode, lambda _: None) as writer:
            samples = planned(*(files[number] for number in numbers))
            writer.put(samples, range(len(samples)), np.uint8(numbers)[:, None])

    folder = folder_of(tmp_path, files)
    folder.open()
    write([0, 1, 2, 3, 4])
    folder.close()
    manifest = (tmp_path / "manifest.jsonl").read_bytes()
    assert folder_of(tmp_path, files).open() == set(files)
    assert capsys.readouterr().out == ""
    (tmp_path / "a" / "1").write_bytes(b"\x03")  # one bit
    (tmp_path / "a" / "3").unlink()
    assert folder_of(tmp_path, files).open() == {"a/0", "a/2", "a/4"}
    assert capsys.readouterr().out == (
        f"{tmp_path}: 2 samples are gone or not as they were made (the first: a/1); "
        "they are made again\n"
    )
    write([1, 3])
    folder.close()
    assert (tmp_path / "manifest.jsonl").read_bytes() == manifest


@pytest.mark.parametrize("name", ["a", "settings.json", "manifest.jsonl", ""])
def test_links_in_the_folder_are_refused(tmp_path, name):
    folder, outside = tmp_path / "synthetic", tmp_path / "outside"
    outside.mkdir()
    if name:
        folder.mkdir()
    os.symlink(outside, folder / name if name else folder)
    with pytest.raises(UserError, match="is a link, and no link is followed"):
        folder_of(folder, ["a/0"]).open()
    assert os.listdir(outside) == []


def test_other_settings_are_refused(tmp_path):
    settings = {"steps": 2, "digest": "sha256:1", "scales": (1.0, 2.0)}
    folder_of(tmp_path, ["a/0"], steps=3).open()  # makes nothing, so binds nobody
    make(folder_of(tmp_path, ["a/0"], **settings))
    make(folder_of(tmp_path, ["a/0", "a/1"], **settings))
    with pytest.raises(
        UserError, match="with steps = 2, now it is 3, .*or choose anot"
    ):
        folder_of(tmp_path, ["a/0", "a/1"], steps=3).open()
    with pytest.raises(UserError, match="was made with another digest, and samples"):
        folder_of(tmp_path, ["a/0", "a/1"], steps=2, digest="sha256:2").open()
    # A setting that is new or gone, as the prompts of one class more or less, is fine.
    make(folder_of(tmp_path, ["a/0", "a/1"], other=1))
    with pytest.raises(UserError, match="with steps = 2, now it is 3"):
        folder_of(tmp_path, ["a/0", "a/1"], steps=3).open()


def test_samples_out_of_plan_are_refused(tmp_path):
    folder = folder_of(tmp_path, ["a/0", "a/1"])
    folder.open()
    for name in ("a/0", "a/1"):
        artifacts.write_bytes(tmp_path / name, b"x")
        artifacts.append_samples(tmp_path, planned(name))
    with pytest.raises(
        UserError, match=r"holds 1 samples more .*first: a/1\); ask for"
    ):
        folder_of(tmp_path, ["a/0"]).open()
    (tmp_path / "settings.json").unlink()
    with pytest.raises(UserError, match=r"not the settings\.json .*; delete"):
        folder.open()
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: cannot be read .*; delete"):
        folder.open()


def test_lines_of_another_plan_are_refused(tmp_path):
    make(folder_of(tmp_path, ["a/0"]))
    folder = folder_of(tmp_path, ["a/0"])
    folder.planned[0] = folder.planned[0]._replace(label="b")
    with pytest.raises(
        UserError, match="has Sample.*label='a'.*plans Sample.*'b'.*del"
    ):
        folder.open()


def test_a_line_that_leaves_the_folder_is_refused(tmp_path):
    folder = folder_of(tmp_path, ["a/0"])
    folder.open()
    artifacts.append_samples(tmp_path, planned("../a/0"))
    with pytest.raises(UserError, match=r"line 1: the file '\.\./a/0' is outside"):
        folder.open()


def test_writer_writes_files_then_lines_in_order(tmp_path):
    written = []
    with sample_folder.SampleWriter(tmp_path, encode, written.append) as writer:
        for number in range(20):
            batch = np.full((3, 2), number, np.uint8) + np.uint8([[0], [50], [100]])
            samples = planned(f"a/{number}-0", f"a/{number}-2")
            writer.put(samples, [0, 2], batch)
    files = [f"a/{number}-{row}" for number in range(20) for row in (0, 2)]
    assert without_digests(tmp_path) == planned(*files)
    assert [sample.file for samples in written for sample in samples] == files
    for number in range(20):
        for row in (0, 2):
            content = (tmp_path / f"a/{number}-{row}").read_bytes()
            assert content == bytes([number + 50 * row] * 2)


def test_writer_reports_what_it_could_not_write(tmp_path):
    (tmp_path / "a").write_bytes(b"a file where a folder should be")
    batch = np.zeros((1, 2), np.uint8)
    with pytest.raises(artifacts.WriteError, match="a file stands where a folder"):
        with sample_folder.SampleWriter(tmp_path, encode, print) as writer:
            for number in range(9):
                writer.put(planned(f"a/{number}"), [0], batch)
    assert artifacts.read_manifest(tmp_path) == []


def test_writer_keeps_what_was_written_before_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with sample_folder.SampleWriter(tmp_path, encode, print) as writer:
            for number in range(9):
                writer.put(planned(f"a/{number}"), [0], np.zeros((1, 2), np.uint8))
            raise KeyboardInterrupt
    made = without_digests(tmp_path)
    assert len(made) >= 6  # all but those that were still waiting
    assert made == planned(*(f"a/{number}" for number in range(len(made))))
    assert all((tmp_path / sample.file).exists() for sample in made)
