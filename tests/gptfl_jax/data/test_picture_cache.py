import errno
import os
import pathlib
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gptfl_jax import artifacts
from gptfl_jax.data import images, picture_cache, sources
from gptfl_jax.data.fingerprint import fingerprint
from gptfl_jax.data.stored_rows import StoredRows
from gptfl_jax.data.synthetic import synthetic_pictures
from gptfl_jax.errors import UserError

from .conftest import save_picture


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty cache of blocks of four pictures."""
    monkeypatch.setattr(picture_cache, "BLOCK", 4)
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache/pictures"


@pytest.fixture
def files(tmp_path) -> list[pathlib.Path]:
    """Ten pictures of 6x4 pixels, of which the third is none."""
    found = [tmp_path / f"set/{i}.png" for i in range(10)]
    for i, file in enumerate(found):
        save_picture(file, np.full((4, 6, 3), 10 * i))
    found[2].write_bytes(b"no picture")
    return found


VALUES = [0, 10, 30, 40, 50, 60, 70, 80, 90]


class Reader:
    """Decodes to 2x2 pixels, and notes what it decodes."""

    def __init__(self, stop_at=""):
        self.read, self.stop_at = [], stop_at

    def __call__(self, file):
        if file.name == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(int(file.stem))
        return images.read_picture(file, 2, 3, crop=True)


def decode(files, reader=None, options=(2,)):
    decoded, about = picture_cache.decode_files(
        files, reader or Reader(), options, "pictures"
    )
    kept = [index for index, size in enumerate(decoded.sizes) if size]
    assert kept == [0, 1, *range(3, 10)] and set(decoded.sizes) == {(2, 2), None}
    assert about[2].error.startswith("cannot be decoded") and not about[3].error
    assert about[0].size == (6, 4) and about[0].mode == "RGB"
    return decoded.take(kept)


def grey(rows):
    pixels = np.asarray(rows)
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def test_pictures_are_decoded_once_and_mapped(files, tmp_path, cache, capsys):
    rows = decode(files)
    assert grey(rows) == VALUES and isinstance(rows, StoredRows)
    assert all(isinstance(part.rows, np.memmap) for part in rows._parts)
    assert (
        f"pictures: 0.0 MB of decoded pictures are kept in {cache} (GPTFL_CACHE_D"
        in (capsys.readouterr().out)
    )
    again = Reader()
    assert grey(decode(files, again)) == VALUES and not again.read
    assert not list(cache.rglob("*.lock")) and capsys.readouterr().out == ""
    # A set that moves is the same; a picture that changes takes its block with it.
    (tmp_path / "set").rename(tmp_path / "moved")
    files = [tmp_path / "moved" / file.name for file in files]
    assert grey(decode(files, again)) == VALUES and not again.read
    save_picture(files[5], np.full((4, 6, 3), 55))
    assert grey(decode(files, again)) == [*VALUES[:4], 55, *VALUES[5:]]
    assert sorted(again.read) == [4, 5, 6, 7]
    other = Reader()
    decode(files, other, options=(3,))
    assert sorted(other.read) == list(range(10))


def _age(cache, days, names="*"):
    for file in cache.rglob(f"{names}.json"):
        then = file.stat().st_mtime - days * 86400
        os.utime(file, (then, then))


def test_what_no_run_has_used_for_a_month_makes_room(files, cache, capsys):
    decode(files)
    mine = cache / "notes.json"
    mine.write_text("{}")
    old = set(cache.rglob("*.npy"))
    assert len(old) == 3
    _age(cache, 31)
    # What is found is in use again.
    again = Reader()
    decode(files, again)
    assert not again.read
    decode(files, options=(3,))
    assert old < set(cache.rglob("*.npy"))
    assert "were deleted" not in capsys.readouterr().out
    # Of two sets one is used.
    _age(cache, 31)
    decode(files)
    decode(files, options=(4,))
    left = set(cache.rglob("*.npy"))
    assert old < left and len(left) == 6 and mine.exists()
    assert {file.with_suffix(".json") for file in left} < set(cache.rglob("*.json"))
    out = capsys.readouterr().out
    assert f"that no run has used lately were deleted from {cache}" in out
    other = Reader()
    assert grey(decode(files, other, options=(3,))) == VALUES
    assert sorted(other.read) == list(range(10))


def test_on_a_full_disk_what_was_used_longest_ago_makes_room(
    files, cache, capsys, monkeypatch
):
    decode(files)
    first = set(cache.rglob("*.npy"))
    _age(cache, 1)
    decode(files, options=(3,))
    second = set(cache.rglob("*.npy")) - first
    _age(cache, 2)
    room = 3 * 4 * 12  # bytes of pixels of a set's blocks of four

    def disk_usage(path):
        there = len(list(cache.rglob("*.npy")))
        return types.SimpleNamespace(free=room - 24 * max(0, there - 4))

    # Six blocks lie there and the set to come needs 120 bytes: one must go.
    monkeypatch.setattr(picture_cache.shutil, "disk_usage", disk_usage)
    decode(files, options=(4,))
    left = set(cache.rglob("*.npy"))
    assert second < left and len(left & first) == 2
    assert "were deleted" in capsys.readouterr().out
    # What was used today stays, and the disk's being full is said.
    monkeypatch.setattr(
        picture_cache.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=10)
    )
    _age(cache, -10)
    decode(files, options=(5,))
    assert left == set(cache.rglob("*.npy"))
    assert "held in memory and not kept" in capsys.readouterr().out


def test_a_set_of_a_block_is_an_array(files, cache, monkeypatch):
    monkeypatch.setattr(picture_cache, "BLOCK", 10)
    rows = decode(files)
    assert grey(rows) == VALUES and isinstance(rows, np.ndarray)
    assert not list(cache.rglob("*.npy"))


def test_what_was_decoded_before_a_kill_is_kept(files, cache):
    with pytest.raises(KeyboardInterrupt):
        decode(files, Reader(stop_at="9.png"))
    rest = Reader()
    assert grey(decode(files, rest)) == VALUES
    assert sorted(rest.read) == [8, 9]


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".npy", lambda whole: whole[:-1]),
        (".npy", lambda whole: b""),
        (".npy", lambda whole: whole.replace(b"(4, 2, 2, 3)", b"(3, 2, 2, 3)")),
        (".npy", lambda whole: whole.replace(b"|u1", b"|i1")),
        (".json", lambda whole: whole[:-3]),
        (".json", lambda whole: b'{"digests": [null], "notes": [[]]}'),
        (".json", None),
    ],
)
def test_half_a_block_is_decoded_again(files, cache, ending, content):
    decode(files)
    (path,) = [p for p in cache.rglob("*.npy") if len(np.load(p)) == 4]
    path = path.with_suffix(ending)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content(path.read_bytes()))
    again = Reader()
    assert grey(decode(files, again)) == VALUES
    assert sorted(again.read) == [4, 5, 6, 7]


def test_two_at_once_share_the_work(files):
    """As two processes do: locks of files know no threads."""
    both, meeting = Reader(), threading.Barrier(2, timeout=20)

    def one(_):
        alone, met = threading.Lock(), []

        def read(file):
            # The first picture of each waits until the other is at a block as well.
            with alone:
                met or met.append(meeting.wait())
            return both(file)

        return grey(decode(files, read))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(one, range(2))) == [VALUES, VALUES]
    assert sorted(both.read) == list(range(10))


PROGRAM = """
import os, pathlib, sys, time
from gptfl_jax.data import images, picture_cache

picture_cache.BLOCK = 4

def read(file):
    os.write(1, f"{file.stem}\\n".encode())  # a whole line: threads do this at once
    time.sleep(float(sys.argv[2]))
    return images.read_picture(file, 2, 3, crop=True)

files = sorted(pathlib.Path(sys.argv[1]).glob("*.png"))
decoded, _ = picture_cache.decode_files(files, read, [2], "pictures")
rows = decoded.take(range(len(files)))
print("grey", *rows[:, 0, 0, 0].tolist())
"""


@pytest.mark.long
def test_a_process_that_is_killed_leaves_the_rest_to_others(tmp_path, cache):
    folder = tmp_path / "many"
    for i in range(48):
        save_picture(folder / f"{i:02d}.png", np.full((4, 6, 3), 5 * i))

    def start(seconds_a_picture):
        command = [sys.executable, "-c", PROGRAM, str(folder), str(seconds_a_picture)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def end(process):
        lines = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == 0
        (values,) = (line.split()[1:] for line in lines if line.startswith("grey"))
        assert values == [str(5 * i) for i in range(48)]
        return [line for line in lines if line.isdigit()]

    # The first is at work before the second starts, and so slow that it still is when
    # the second has begun: whichever the machine starts faster, one cannot do it all.
    killed = start(3)
    seen = [killed.stdout.readline() for _ in range(6)]
    assert all(line.strip().isdigit() for line in seen)
    other = start(0.02)
    begun = other.stdout.readline()
    assert begun.strip().isdigit()
    killed.kill()
    killed.communicate()
    # Not all: whole blocks of the one that was killed are taken.
    assert 0 < len(end(other)) < 47
    assert end(start(0.02)) == []
    assert not [path for path in cache.rglob(".*") if "part" in path.name]


def full(monkeypatch, folder):
    free = types.SimpleNamespace(free=50)
    monkeypatch.setattr(picture_cache.shutil, "disk_usage", lambda _: free)


def fails_to_write(monkeypatch, folder):
    def write(path, content):
        with artifacts.files.explained(path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifacts, "write_bytes", write)


def no_folder(monkeypatch, folder):
    folder.parent.write_text("a file")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (full, "it has 0.0 MB free, of 0.0 MB needed"),
        (fails_to_write, "No space left on device"),
        (no_folder, "Not a directory"),
    ],
)
def test_a_disk_that_takes_nothing_is_named(
    files, cache, fault, reason, monkeypatch, capsys
):
    fault(monkeypatch, cache)
    assert grey(decode(files)) == VALUES
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and (
        f"pictures: decoded pictures are held in memory and not kept in {cache} "
        f"({reason}): set GPTFL_CACHE_DIR to a folder that takes them" in out
    )
    monkeypatch.setattr(picture_cache.os, "sysconf", lambda name: 10)
    with pytest.raises(
        UserError, match=r"more than half of the memory.*GPTFL_CACHE_DI"
    ):
        decode(files)


def test_files_that_look_the_same_are_not_read_again(files, monkeypatch):
    del files[2]
    first = picture_cache.contents_of(files)
    assert first[0] == artifacts.digest(files[0].read_bytes())
    for file in files:  # long ago
        os.utime(file, (1e9, 1e9))
    assert picture_cache.contents_of(files) == first
    monkeypatch.setattr(picture_cache, "_digest_of_file", lambda file: "read")
    assert picture_cache.contents_of(files) == first
    os.utime(files[3], (2e9, 2e9))
    assert picture_cache.contents_of(files) == ["read"] * 9


def test_a_file_that_changes_meanwhile_is_not_kept(files, cache):
    reader = Reader()

    def read(file):
        picture = reader(file)
        if file.name == "9.png" and len(reader.read) <= 10:
            save_picture(file, np.full((4, 6, 3), 99))
        return picture

    assert grey(decode(files, read)) == VALUES
    again = Reader()
    assert grey(decode(files, again)) == [*VALUES[:-1], 99]
    assert sorted(again.read) == [8, 9]


def test_folders_are_split_as_they_are_in_memory(tmp_path, monkeypatch):
    for i in range(12):
        pixels = np.full((4, 4, 3), i // 2) if i % 3 else np.full((4, 4), i // 2)
        save_picture(tmp_path / f"set/{'cat' if i < 7 else 'dog'}/{i}.png", pixels)

    def load():
        return sources.load("image_folder", str(tmp_path / "set"), image_size=2)

    found = load()
    assert isinstance(found.train.inputs, StoredRows)
    monkeypatch.setattr(picture_cache, "BLOCK", 100)
    expected = load()
    for part, other in zip(found[:2], expected[:2], strict=True):
        assert isinstance(other.inputs, np.ndarray)
        np.testing.assert_array_equal(part.inputs, other.inputs)
        np.testing.assert_array_equal(part.labels, other.labels)
    assert fingerprint(*found[:2]) == fingerprint(*expected[:2])
    assert found.mean == expected.mean


def test_synthetic_pictures_are_those_of_the_manifest(tmp_path):
    samples = []
    for i in range(10):
        file = tmp_path / f"made/cat/{i}.png"
        save_picture(file, np.full((4, 4, 3), 10 * i))
        digest = artifacts.digest(file.read_bytes())
        sample = artifacts.Sample(f"cat/{i}.png", "cat", "", i, None, "test")
        samples.append(sample._replace(sha256=digest))
    artifacts.append_samples(tmp_path / "made", samples)
    data, _ = synthetic_pictures(tmp_path / "made", ("cat",), 2, 1)
    assert isinstance(data.inputs, StoredRows)
    assert grey(data.inputs) == list(range(0, 100, 10))
    save_picture(tmp_path / "made/cat/4.png", np.full((4, 4, 3), 99))
    save_picture(tmp_path / "made/cat/6.png", np.full((4, 8, 3), 99))
    data, report = synthetic_pictures(tmp_path / "made", ("cat",), 2, 1)
    assert grey(data.inputs) == [0, 10, 20, 30, 50, 70, 80, 90]
    assert report.left_out == tuple((f"cat/{i}.png", artifacts.CHANGED) for i in (4, 6))
