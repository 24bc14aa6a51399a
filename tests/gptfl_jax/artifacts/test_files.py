"""Files appear whole, below no link, or an error says why not."""

import errno
import json
import math
import os
import resource
import signal

import numpy as np
import pytest

from gptfl_jax import artifacts
from gptfl_jax.artifacts import Checkpoints, Metrics
from gptfl_jax.errors import UserError

from .common import SAMPLES, files_below, python


def test_writes_bytes_text_and_json(tmp_path):
    artifacts.write_bytes(tmp_path / "a" / "b.bin", b"\x00\xff")
    artifacts.write_text(tmp_path / "t.txt", "é\n")
    value = {"n": np.int32(3), "x": np.float32(0.5), "t": (1, None), "p": tmp_path}
    artifacts.write_json(tmp_path / "v.json", {**value, "bad": math.nan})

    assert (tmp_path / "a" / "b.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "é\n"
    assert json.loads((tmp_path / "v.json").read_text()) == {
        "n": 3,
        "x": 0.5,
        "t": [1, None],
        "p": str(tmp_path),
        "bad": None,
    }


def test_writes_many_files(tmp_path):
    files = {
        tmp_path / str(i % 3) / f"{i}.png": bytes([i]) * (i + 1) for i in range(40)
    }
    artifacts.write_files(files)
    assert {path: path.read_bytes() for path in files} == files
    assert len(files_below(tmp_path)) == 40
    artifacts.write_files({})


def test_replaces_an_old_file_and_leaves_no_temporary_one(tmp_path):
    path = tmp_path / "f.json"
    artifacts.write_text(path, "old, and longer than the new")
    artifacts.write_text(path, "new")
    assert path.read_text() == "new"
    assert files_below(tmp_path) == ["f.json"]


def test_kill_between_write_and_rename_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")
    process = python(
        """
        import os, signal, sys
        from gptfl_jax import artifacts
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        artifacts.write_text(sys.argv[1], "new")
        """,
        path,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # What the kill left has another name, and the next run writes as ever.
    assert len(files_below(tmp_path)) == 2
    artifacts.write_text(path, "new")
    assert path.read_text() == "new"
    (tmp_path / ".hidden").write_text("")
    (tmp_path / ".profile.20240101").write_text("a user's")
    (tmp_path / ".f.txt.4711").write_text("of an earlier version")
    artifacts.remove_leftovers(tmp_path, ["f.txt"])
    artifacts.remove_leftovers(tmp_path / "none")
    assert files_below(tmp_path) == [".hidden", ".profile.20240101", "f.txt"]


def test_what_is_being_written_is_no_leftover(tmp_path):
    writer = python(
        """
        import os, sys
        from gptfl_jax import artifacts

        def wait(*_):
            print("written", flush=True)
            sys.stdin.readline()
            return replace(*_)

        replace, os.replace = os.replace, wait
        artifacts.write_text(sys.argv[1], "new")
        """,
        tmp_path / "report.html",
    )
    try:
        assert writer.stdout.readline() == "written\n"
        artifacts.remove_leftovers(tmp_path)
        writer.communicate("go on\n", timeout=60)
    finally:
        writer.kill()
    assert files_below(tmp_path) == ["report.html"]


def test_more_files_than_may_be_open_at_once_are_written(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        artifacts.write_files({tmp_path / str(i): b"x" for i in range(500)})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(files_below(tmp_path)) == 500


def test_text_that_is_not_unicode_comes_back(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"argv": ["caf\udce9"]})
    content = artifacts.read_json(tmp_path / "a.json", {"argv": ["string"]}, "")
    assert content == {"argv": ["caf\udce9"]}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only"),
        (errno.EFBIG, "a file is larger than this process or the disk allows"),
        (errno.EIO, "input/output error. Choose another --workdir"),
    ],
)
def test_a_failed_write_names_the_folder_and_leaves_nothing(
    tmp_path, monkeypatch, code, says
):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    old = {tmp_path / "a": b"1", tmp_path / "b": b"2"}
    artifacts.write_files(old)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(artifacts.WriteError, match=says) as caught:
        artifacts.write_files(dict.fromkeys(old, b"new"))
    assert str(tmp_path) in str(caught.value)
    assert {path: path.read_bytes() for path in old} == old
    assert files_below(tmp_path) == ["a", "b"]


def test_other_errors_are_not_called_write_errors(tmp_path):
    with pytest.raises(TypeError):
        artifacts.write_json(tmp_path / "f", object())
    (tmp_path / "file").write_text("")
    with pytest.raises(artifacts.WriteError, match="a file stands where a folder"):
        artifacts.write_text(tmp_path / "file" / "f.json", "")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a system without /proc")
@pytest.mark.parametrize("name", ["/proc/x", "/dev/null/x", "/proc/stat", "x" * 300])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name):
    with pytest.raises(artifacts.WriteError, match="cannot write to .*another --work"):
        artifacts.make_folder(tmp_path / name)


def test_files_larger_than_allowed_end_with_a_line(tmp_path):
    process = python(
        """
        import resource, sys
        import numpy as np
        from gptfl_jax import artifacts

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        noise = np.random.default_rng(0).random(100_000)
        metrics = artifacts.Metrics(sys.argv[1] + "/m.jsonl")
        metrics.write(1)
        def save(tree):
            with artifacts.Checkpoints(sys.argv[1] + "/c") as checkpoints:
                checkpoints.save(1, tree)

        for write in (
            lambda: artifacts.write_bytes(sys.argv[1] + "/f", bytes(200_000)),
            lambda: metrics.write(2, text="x" * 200_000),
            lambda: save({"x": noise}),
        ):
            try:
                write()
            except artifacts.WriteError as error:
                print(error)
        """,
        tmp_path,
    )
    output, errors = process.communicate(timeout=60)
    lines = output.splitlines()
    assert len(lines) == 3, errors
    for line in lines:
        assert f"cannot write to {tmp_path}" in line and "ulimit -f" in line
    assert artifacts.read_metrics(tmp_path / "m.jsonl") == [{"step": 1}]


@pytest.mark.parametrize(
    "name",
    [".lock", "manifest.jsonl", "metrics.jsonl", "r.jsonl", "checkpoints", "sub"],
)
def test_no_link_is_followed_for_writing(tmp_path, name):
    folder, outside = tmp_path / "workdir", tmp_path / "outside"
    folder.mkdir()
    is_folder = name in ("checkpoints", "sub")
    if is_folder:
        outside.mkdir()
    else:
        outside.write_text("precious\n")
    (folder / name).symlink_to(outside)
    write = {
        ".lock": lambda: artifacts.lock(folder).__enter__(),
        "manifest.jsonl": lambda: artifacts.append_samples(folder, SAMPLES),
        "metrics.jsonl": lambda: Metrics(folder / name),
        "r.jsonl": lambda: artifacts.append_records(folder / name, [{}]),
        "checkpoints": lambda: Checkpoints(folder / name),
        "sub": lambda: artifacts.lock(folder / name / "run", folder).__enter__(),
    }[name]
    with pytest.raises(artifacts.WriteError) as caught:
        write()
    assert str(caught.value) == (
        f"{folder / name} is a link, and no link is followed for writing: remove it, "
        "or put the whole --workdir where it leads to"
    )
    if is_folder:
        assert os.listdir(outside) == []
    else:
        assert outside.read_text() == "precious\n"
    # What appears whole takes the place of a link.
    if not is_folder:
        artifacts.write_text(folder / name, "new")
        assert outside.read_text() == "precious\n"
        assert (folder / name).read_text() == "new"


def test_a_workdir_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    workdir = tmp_path / "workdir"
    workdir.symlink_to(tmp_path / "disk")
    with artifacts.lock(workdir / "run", workdir), artifacts.lock(workdir):
        Metrics(workdir / "run" / "metrics.jsonl").write(1)
        with Checkpoints(workdir / "run" / "checkpoints") as checkpoints:
            checkpoints.save(1, {"x": 1})
    assert artifacts.read_metrics(tmp_path / "disk/run/metrics.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl"])
def test_a_pipe_in_a_files_place_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}.* .?no plain file"):
        with artifacts.lock(tmp_path):
            Metrics(tmp_path / name, resume_after=1)
