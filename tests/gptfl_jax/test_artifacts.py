import errno
import json
import math
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from gptfl_jax import artifacts
from gptfl_jax.artifacts import Checkpoints, Metrics, Sample, digests
from gptfl_jax.artifacts.checkpoints import _is_key
from gptfl_jax.errors import UserError


def python(code: str, *arguments: object) -> subprocess.Popen:
    """A second process that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_below(folder: pathlib.Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )


# Whole files


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


# Links


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


# Locks


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    holder = python(
        """
        import sys, time
        from gptfl_jax import artifacts
        with artifacts.lock(sys.argv[1]):
            print("held", flush=True)
            time.sleep(60)
        """,
        tmp_path,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(artifacts.WorkdirInUse) as caught:
            with artifacts.lock(tmp_path):
                pass
        assert str(tmp_path) in str(caught.value)
        assert f"process {holder.pid} on" in str(caught.value)
        assert "another --workdir" in str(caught.value)
    finally:
        holder.kill()
        holder.wait()
    # Killed, not closed: the kernel let go of the lock.
    with artifacts.lock(tmp_path):
        with pytest.raises(artifacts.WorkdirInUse):
            with artifacts.lock(tmp_path):
                pass
    with artifacts.lock(tmp_path):
        pass


def test_lock_is_released_by_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with artifacts.lock(tmp_path / "made"):
            _ = 1 / 0
    with artifacts.lock(tmp_path / "made"):
        pass


@pytest.mark.parametrize("how", ["deleted", "replaced", "with its folder"])
def test_a_lock_that_is_deleted_under_a_run_stops_it(tmp_path, how):
    folder = tmp_path / "run"
    with artifacts.lock(folder):
        metrics = Metrics(folder / "metrics.jsonl")
        metrics.write(1)
        with Checkpoints(folder / "c") as checkpoints:
            checkpoints.save(1, {"x": 1})
            checkpoints.wait()
            if how == "with its folder":
                shutil.rmtree(folder)
            else:
                (folder / ".lock").unlink()
            if how == "replaced":
                (folder / ".lock").write_text("")
            says = f"{folder}/.lock was deleted or replaced .* start the same command"
            for write in (
                lambda: metrics.write(2),
                lambda: artifacts.append_samples(folder / "synthetic", SAMPLES),
                lambda: checkpoints.save(2, {"x": 2}),
            ):
                with pytest.raises(artifacts.WorkdirInUse, match=says):
                    write()
        # Other folders are written to as ever.
        Metrics(tmp_path / "other.jsonl").write(1)
    if how == "with its folder":
        assert not folder.exists()
    else:
        assert artifacts.read_metrics(folder / "metrics.jsonl") == [{"step": 1}]
        assert not (folder / "c" / "2").exists()
    with artifacts.lock(folder):
        Metrics(folder / "metrics.jsonl").write(2)


def test_a_lock_deleted_while_a_step_is_written_keeps_it_from_its_name(tmp_path):
    with artifacts.lock(tmp_path), pytest.raises(artifacts.WorkdirInUse):
        with Checkpoints(tmp_path / "c") as checkpoints:
            write = digests.write
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    digests,
                    "write",
                    lambda folder: ((tmp_path / ".lock").unlink(), write(folder)),
                )
                checkpoints.save(1, {"x": 1})
                checkpoints.wait()
    assert not (tmp_path / "c" / "1").exists()


def test_a_lock_sweeps_what_kills_have_left(tmp_path):
    (tmp_path / f".{'0' * 16}.gptfl-part").write_text("x")
    (tmp_path / ".profile.20240101").write_text("a user's")
    (tmp_path / ".metrics.jsonl.4711").write_text("of an earlier version")
    with artifacts.lock(tmp_path):
        Metrics(tmp_path / "metrics.jsonl")
    assert files_below(tmp_path) == [".lock", ".profile.20240101", "metrics.jsonl"]


# Manifest

SAMPLES = [
    Sample("seven/seven_0.png", "seven", "a thin seven", 17, 7.5, "glyphs"),
    Sample("one/one_0.png", "one", 'a "one"\nin ink', 2**63, None, "glyphs"),
]


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


# Metrics


def test_metrics_are_numbers_again(tmp_path):
    metrics = Metrics(tmp_path / "run" / "metrics.jsonl")
    metrics.write(1, accuracy=jnp.float32(0.5), clients=np.int32(3), seconds=1.25)
    metrics.write(2, accuracy=float("nan"), note="x")
    first, second = artifacts.read_metrics(metrics.path)
    assert first == {"step": 1, "accuracy": 0.5, "clients": 3, "seconds": 1.25}
    assert math.isnan(second.pop("accuracy"))
    assert second == {"step": 2, "note": "x"}
    # Strict JSON: other readers know no NaN.
    assert '"accuracy": null' in metrics.path.read_text()


def test_resumed_metrics_drop_what_comes_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(1, 6):
        metrics.write(step, value=step * 10)
    with open(path, "a") as file:
        file.write('{"step": 6, "val')
    assert [line["step"] for line in artifacts.read_metrics(path)] == [1, 2, 3, 4, 5]

    metrics = Metrics(path, resume_after=3)
    metrics.write(4, value=-4)
    assert [line["value"] for line in artifacts.read_metrics(path)] == [10, 20, 30, -4]
    assert artifacts.read_metrics(tmp_path / "none.jsonl") == []
    Metrics(path)
    assert artifacts.read_metrics(path) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"value": 2}', "step is missing"),
        (b'{"step": 2.5}', "step is not a whole number"),
        (b'{"step": 1}', "step 1 after 1"),
        (b'{"step": 2, "a": NaN}', "NaN is no number of JSON"),
        (b'{"step": 2, "a": 1e999}', "a is not a number"),
        (b'{"step": 2, "\xff": 1}', "byte 14 is not UTF-8"),
        (b'{"step": ' + 5000 * b"9" + b"}", "a number is too long"),
        (100_000 * b"[", "nested too deeply"),
    ],
)
def test_damaged_metrics_name_the_line(tmp_path, line, says):
    (tmp_path / "m.jsonl").write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match="m.jsonl line 2 is not a line of met") as error:
        artifacts.read_metrics(tmp_path / "m.jsonl")
    assert f"({says}). Remove the line, or" in str(error.value)
    assert len(str(error.value)) < 400


def test_metrics_that_have_lost_lines_are_missed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(
        UserError, match="has no line, but .* checkpoint of step 3: lin"
    ):
        Metrics(path, resume_after=3)
    artifacts.append_records(path, [{"step": 1}, {"step": 2}])
    before = path.read_bytes()
    with pytest.raises(UserError, match="ends at step 2, but .* step 3.* or delete"):
        Metrics(path, resume_after=3)
    assert path.read_bytes() == before
    # A run that does not write a line each step says which is the last.
    Metrics(path, resume_after=3, last_line=2)
    assert artifacts.read_metrics_until(path, 2) == [{"step": 1}, {"step": 2}]


# Checkpoints


def training_state(scale: float = 1.0) -> dict:
    """Every kind of leaf: arrays, NamedTuples, a key, numpy, Python numbers."""
    params = {
        "dense": {"kernel": jnp.arange(6.0).reshape(2, 3) * scale},
        "bias": jnp.array([1.5, -2.0], jnp.bfloat16),
    }
    return {
        "variables": {"params": params},
        "optimizer": optax.adam(1e-3).init(params),
        "key": jax.random.key(7),
        "order": np.arange(4),
        "round": 12,
        "rate": 0.5,
        "done": False,
    }


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert type(leaf) is type(same)
        if _is_key(leaf):
            leaf, same = jax.random.key_data(leaf), jax.random.key_data(same)
        assert np.asarray(leaf).dtype == np.asarray(same).dtype
        np.testing.assert_array_equal(leaf, same)


def test_checkpoint_gives_back_every_kind_of_leaf(tmp_path):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        checkpoints.save(3, state)
        checkpoints.wait()
        assert_same(checkpoints.restore(training_state(0.0)), state)
        # The key goes on drawing what the old one would have drawn.
        key = checkpoints.restore({"key": jax.random.key(0)})["key"]
        assert jax.random.uniform(key) == jax.random.uniform(state["key"])


def test_restores_onto_shapes_and_into_a_part(tmp_path):
    state = training_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
    wanted = {name: state[name] for name in ("variables", "key")}
    restored = artifacts.restore_checkpoint(tmp_path, jax.eval_shape(lambda: wanted))
    assert_same(restored, wanted)
    on_host = {"variables": jax.tree.map(np.asarray, state["variables"])}
    assert_same(artifacts.restore_checkpoint(tmp_path, on_host), on_host)


def test_restores_other_key_implementations(tmp_path):
    state = {"key": jax.random.key(3, impl="rbg")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
    template = {"key": jax.random.key(0, impl="rbg")}
    for shape_of in (template, jax.eval_shape(lambda: template)):
        key = artifacts.restore_checkpoint(tmp_path, shape_of)["key"]
        assert jax.random.bits(key) == jax.random.bits(state["key"])


def test_restores_with_the_sharding_of_the_template(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    state = {"x": jax.device_put(jnp.arange(8.0), sharding)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        restored = checkpoints.restore({"x": jnp.zeros(8, device=sharding)})
    assert restored["x"].sharding == sharding
    np.testing.assert_array_equal(restored["x"], np.arange(8.0))


def test_a_saved_tree_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    tree = {"x": jnp.zeros(100_000)}
    with Checkpoints(tmp_path, keep=20) as checkpoints:
        for index in range(10):
            checkpoints.save(index, tree)
            tree = step(tree)
        checkpoints.wait()
        for index in range(10):
            restored = checkpoints.restore({"x": np.zeros(100_000, np.float32)}, index)
            np.testing.assert_array_equal(restored["x"], index)


def test_keeps_the_last_ones_and_the_best(tmp_path):
    accuracies = [0.1, 0.8, 0.3, math.nan, 0.5, 0.6]
    with Checkpoints(tmp_path, best="accuracy") as checkpoints:
        for step, accuracy in enumerate(accuracies):
            checkpoints.save(
                step, {"x": np.float32(step)}, {"accuracy": accuracy, "loss": 1.0}
            )
        checkpoints.save(5, {"x": np.float32(-1)}, {"accuracy": 2.0})
        with pytest.raises(ValueError, match="best metric"):
            checkpoints.save(6, {"x": np.float32(-1)}, {"loss": 2.0})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 4, 5]
    template = {"x": np.zeros((), np.float32)}
    # A reader need not know which metric it was.
    assert artifacts.restore_checkpoint(tmp_path, template, "best")["x"] == 1
    assert artifacts.restore_checkpoint(tmp_path, template)["x"] == 5
    assert artifacts.restore_checkpoint(tmp_path, template, 4)["x"] == 4
    with Checkpoints(tmp_path, best="accuracy") as checkpoints:
        assert checkpoints.best_step() == 1
        for step, accuracy in [(6, 0.7), (7, 0.9), (8, 0.2)]:
            checkpoints.save(step, {"x": np.float32(step)}, {"accuracy": accuracy})
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8]


def test_missing_checkpoints_say_so(tmp_path):
    with pytest.raises(UserError, match="none is missing"):
        artifacts.restore_checkpoint(tmp_path / "none", {"x": 1})
    with Checkpoints(tmp_path / "empty") as checkpoints:
        with pytest.raises(UserError, match="empty holds no checkpoint"):
            checkpoints.restore({"x": 1})
        with pytest.raises(UserError, match="empty holds no checkpoint 4"):
            checkpoints.restore({"x": 1}, 4)
    assert files_below(tmp_path) == ["empty/identity.json"]


def test_checkpoint_of_another_model_says_what_differs(tmp_path):
    identity = {
        "model": {"name": "convnet", "options": {"width": 128}},
        "class_names": ("zero", "one"),
    }
    with Checkpoints(tmp_path, identity) as checkpoints:
        checkpoints.save(1, training_state())
    with Checkpoints(tmp_path, identity):
        pass
    # Reading without a statement of identity leaves the stored one alone.
    with Checkpoints(tmp_path):
        pass
    other = {**identity, "model": {"name": "resnet", "options": {}}}
    for read_only in (False, True):
        with pytest.raises(artifacts.CheckpointMismatch) as caught:
            Checkpoints(tmp_path, other, read_only=read_only)
        message = str(caught.value)
        assert str(tmp_path) in message
        assert 'model.name is "convnet" there and "resnet" here' in message
        assert "model.options.width is 128 there and absent here" in message
        assert "class_names" not in message


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (
            {"dense": {"kernel": np.zeros((2, 4), np.float32)}},
            "params/dense/kernel is float32[2,3] there and float32[2,4] here",
        ),
        (
            {"dense": {"kernel": np.zeros((2, 3), np.float64)}},
            "params/dense/kernel is float32[2,3] there and float64[2,3] here",
        ),
        ({"dense": {}}, "params/dense/kernel is float32[2,3] there and absent here"),
        (
            {"dense": {"kernel": np.zeros((2, 3), np.float32)}, "more": 1.0},
            "params/more is absent there and float64[] here",
        ),
    ],
)
def test_leaves_that_do_not_fit_are_named(tmp_path, params, says):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            1, {"params": {"dense": {"kernel": np.ones((2, 3), np.float32)}}, "n": 1}
        )
        checkpoints.wait()
        with pytest.raises(artifacts.CheckpointMismatch) as caught:
            checkpoints.restore({"params": params, "n": 0})
    assert says in str(caught.value)


def test_an_earlier_step_is_saved_as_well(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        checkpoints.save(5, {"x": 5})
        checkpoints.save(3, {"x": 3})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 5]
        assert checkpoints.restore({"x": 0}, 3) == {"x": 3}


def test_another_identity_may_follow_where_nothing_was_saved(tmp_path):
    with Checkpoints(tmp_path, {"model": "a"}):
        pass
    with Checkpoints(tmp_path, {"model": "b"}) as checkpoints:
        checkpoints.save(1, {"x": 1})
    with pytest.raises(artifacts.CheckpointMismatch, match='"b" there and "a" here'):
        Checkpoints(tmp_path, {"model": "a"})


def saved_steps(folder: pathlib.Path, steps: int = 3) -> dict:
    """A folder of checkpoints 1, 2, ..., of which the second is the best."""
    with Checkpoints(folder, {"m": 1}, keep=steps, best="a") as checkpoints:
        for step in range(1, steps + 1):
            tree = {"x": np.arange(3.0) * step, "deep": {"y": np.int32(step)}}
            checkpoints.save(step, tree, {"a": 1.0 - (step - 2) ** 2})
    return {"x": np.zeros(3), "deep": {"y": np.int32(0)}}


def flip(path: pathlib.Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_flipped_bit_of_a_step_is_noticed(tmp_path, capsys):
    """In each of its files, the digests among them, at several places."""
    template = saved_steps(tmp_path)
    files = [path for path in (tmp_path / "3").rglob("*") if path.is_file()]
    names = {str(path.relative_to(tmp_path / "3")) for path in files}
    assert {"SHA256SUMS", "_CHECKPOINT_METADATA", "metrics/metrics"} < names
    draw = np.random.default_rng(0)
    for path in files:
        size = 8 * path.stat().st_size
        for bit in {0, size - 1, *draw.integers(0, size, 4).tolist()}:
            flip(path, bit)
            with Checkpoints(tmp_path, read_only=True) as checkpoints:
                assert checkpoints.latest_step() == 2, (path, bit)
                assert checkpoints.restore(template)["deep"]["y"] == 2
            flip(path, bit)
            error = capsys.readouterr().err
            name = "SHA256SUMS" if path.name == "SHA256SUMS" else path.name
            assert error.count("\n") == 1 and (name in error or "SHA" in name)
            assert error.startswith(f"checkpoint 3 in {tmp_path} is damaged (")
            assert error.endswith("): checkpoint 2 is taken\n")
    assert artifacts.restore_checkpoint(tmp_path, template)["deep"]["y"] == 3


@pytest.mark.parametrize("damage", ["lost", "empty", "truncated"])
def test_files_that_are_gone_or_cut_are_noticed(tmp_path, damage):
    template = saved_steps(tmp_path)
    for path in (tmp_path / "3").rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if damage == "lost":
            path.unlink()
        else:
            path.write_bytes(b"" if damage == "empty" else content[:-1])
        assert artifacts.restore_checkpoint(tmp_path, template)["deep"]["y"] == 2
        path.write_bytes(content)


def test_a_run_goes_on_from_the_step_before_a_damaged_one(tmp_path, capsys):
    template = saved_steps(tmp_path)
    for path in (tmp_path / "3" / "default" / "d").iterdir():
        path.write_bytes(b"damaged")
    with Checkpoints(tmp_path, {"m": 1}, keep=3, best="a") as checkpoints:
        with pytest.raises(UserError, match="checkpoint 3 in .* cannot be read") as no:
            checkpoints.restore(template, 3)
        assert f"Delete {tmp_path / '3'} to go on" in str(no.value)
        assert checkpoints.latest_step() == 2 and checkpoints.steps() == [1, 2]
        # The step comes again, and takes the place of the damaged one.
        checkpoints.save(3, template | {"x": np.full(3, 9.0)}, {"a": 0.0})
        checkpoints.wait()
        assert checkpoints.restore(template)["x"][0] == 9
    capsys.readouterr()
    assert artifacts.restore_checkpoint(tmp_path, template)["x"][0] == 9
    assert capsys.readouterr().err == ""


def test_the_next_best_is_taken_for_a_damaged_best_one(tmp_path, capsys):
    template = saved_steps(tmp_path)
    flip(tmp_path / "2" / "metrics" / "metrics", 20)
    assert artifacts.restore_checkpoint(tmp_path, template, "best")["deep"]["y"] == 3
    flip(tmp_path / "2" / "metrics" / "metrics", 20)
    flip(tmp_path / "2" / "default" / "_METADATA", 20)
    capsys.readouterr()
    assert artifacts.restore_checkpoint(tmp_path, template, "best")["deep"]["y"] == 3
    says = (
        "checkpoint 2 in .* is damaged .default/_METADATA has changed.: .* 3 is taken"
    )
    assert re.search(says, capsys.readouterr().err)


def test_no_whole_step_is_said_so(tmp_path):
    template = saved_steps(tmp_path, 2)
    for step in "12":
        (tmp_path / step / "default" / "manifest.ocdbt").write_bytes(b"")
    for checkpoints in (
        Checkpoints(tmp_path, read_only=True),
        Checkpoints(tmp_path, {"m": 1}, best="a"),
    ):
        with checkpoints, pytest.raises(UserError) as caught:
            checkpoints.restore(template)
        assert str(caught.value) == (
            f"no checkpoint in {tmp_path} is whole (2: default/manifest.ocdbt has "
            "changed; 1: default/manifest.ocdbt has changed): put the files back from "
            f"a copy, or delete {tmp_path.parent} to start anew"
        )


def test_checkpoints_without_their_record_are_refused(tmp_path):
    template = saved_steps(tmp_path)
    record = (tmp_path / "identity.json").read_bytes()
    (tmp_path / "identity.json").unlink()
    for options in ({"read_only": True}, {"identity": {"m": 2}}, {"best": "a"}):
        with pytest.raises(UserError, match="identity.json is missing.*or delete"):
            Checkpoints(tmp_path, **options)
    (tmp_path / "identity.json").write_bytes(record.replace(b'"a"', b'"b"'))
    with pytest.raises(UserError, match="no checkpoint in .* has the metric 'b'"):
        artifacts.restore_checkpoint(tmp_path, template, "best")


def test_checkpoints_of_an_earlier_version_are_read_and_get_digests(tmp_path):
    template = saved_steps(tmp_path)
    torn = tmp_path / "4" / "default"
    torn.mkdir(parents=True)
    (torn / "_METADATA").write_bytes(b"{}")
    for path in tmp_path.glob("*/SHA256SUMS"):
        path.unlink()
    artifacts.write_json(tmp_path / "identity.json", {"identity": {}, "best": "a"})
    assert artifacts.restore_checkpoint(tmp_path, template)["deep"]["y"] == 3
    assert artifacts.restore_checkpoint(tmp_path, template, "best")["deep"]["y"] == 2
    with Checkpoints(tmp_path, keep=3, best="a") as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
    assert not torn.parent.exists()
    flip(tmp_path / "3" / "default" / "_METADATA", 99)
    assert artifacts.restore_checkpoint(tmp_path, template)["deep"]["y"] == 2


def test_a_step_opens_with_plain_orbax_and_sha256sum(tmp_path):
    saved_steps(tmp_path)
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.CheckpointManager(tmp_path, item_handlers=handler) as manager:
        assert list(manager.all_steps()) == [1, 2, 3]
        restored = manager.restore(3, args=ocp.args.PyTreeRestore())
    np.testing.assert_array_equal(restored["x"], [0, 3, 6])
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=tmp_path / "3", check=True)


@pytest.mark.parametrize("moment", ["deleting", "digests", "naming"])
def test_kill_in_the_middle_of_a_step_leaves_nothing_for_ever(tmp_path, moment):
    process = python(
        """
        import os, shutil, signal, sys
        import numpy as np
        from gptfl_jax.artifacts import Checkpoints, checkpoints, digests

        def die(*arguments, **options):
            os.kill(os.getpid(), signal.SIGKILL)

        with Checkpoints(sys.argv[1], {"m": 1}, keep=1) as saved:
            saved.save(1, {"x": np.ones(3)})
            saved.wait()
            match sys.argv[2]:
                case "deleting":
                    remove, folder = os.unlink, None
                    os.unlink = lambda *a, **k: (remove(*a, **k), die())
                case "digests":
                    digests.write = die
                case "naming":
                    os.replace = die
            saved.save(2, {"x": np.full(3, 2.0)})
        """,
        tmp_path,
        moment,
    )
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    last = 2 if moment == "deleting" else 1
    (tmp_path / ".profile.20240101").write_text("a user's")
    (tmp_path / "5.orbax-checkpoint-tmp-1").mkdir()
    restored = artifacts.restore_checkpoint(tmp_path, {"x": np.zeros(3)})
    np.testing.assert_array_equal(restored["x"], last)
    with Checkpoints(tmp_path, {"m": 1}, keep=1) as checkpoints:
        assert checkpoints.steps() == [last]
        checkpoints.save(3, {"x": np.full(3, 3.0)})
    left = sorted(os.listdir(tmp_path))
    assert left == [".profile.20240101", "3", "identity.json"]


def test_kill_while_saving_leaves_the_last_good_one(tmp_path):
    process = python(
        """
        import os, sys
        import numpy as np
        from gptfl_jax.artifacts import Checkpoints

        checkpoints = Checkpoints(sys.argv[1], {"model": "m"}, keep=2)
        step = 0
        while True:
            step += 1
            checkpoints.save(step, {"x": np.full(300_000, step)})
            print(step, flush=True)
        """,
        tmp_path,
    )
    for _ in range(4):
        process.stdout.readline()
    time.sleep(0.05)
    process.kill()
    process.communicate()
    with Checkpoints(tmp_path, {"model": "m"}, keep=2) as checkpoints:
        step = checkpoints.latest_step()
        assert step >= 2
        restored = checkpoints.restore({"x": np.zeros(300_000, int)})
        np.testing.assert_array_equal(restored["x"], step)
        checkpoints.save(step + 1, {"x": np.full(300_000, step + 1)})
        checkpoints.wait()
        assert checkpoints.latest_step() == step + 1
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB of its own; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("no right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_leaves_the_last_good_checkpoint(small_disk):
    noise = np.random.default_rng(0).random((5, 200_000))
    template = {"x": np.zeros(200_000)}
    saved = 0
    with pytest.raises(artifacts.WriteError, match="disk is full") as caught:
        with Checkpoints(small_disk / "c", keep=5) as checkpoints:
            for step in range(5):
                checkpoints.save(step, {"x": noise[step]})
                checkpoints.wait()
                saved = step
    assert str(small_disk / "c") in str(caught.value)
    assert saved >= 1
    restored = artifacts.restore_checkpoint(small_disk / "c", template)
    np.testing.assert_array_equal(restored["x"], noise[saved])

    metrics = Metrics(small_disk / "m.jsonl")
    metrics.write(1)
    with pytest.raises(OSError):
        (small_disk / "rest").write_bytes(bytes(5_000_000))
    with pytest.raises(artifacts.WriteError, match="disk is full"):
        metrics.write(2, text="x" * 10_000)
    assert artifacts.read_metrics(metrics.path) == [{"step": 1}]
    with pytest.raises(artifacts.WriteError, match="disk is full"):
        artifacts.write_bytes(small_disk / "m.jsonl", bytes(100_000))
    assert artifacts.read_metrics(metrics.path) == [{"step": 1}]


def test_a_program_on_a_full_disk_ends_with_a_line(small_disk, tmp_path):
    """Some of the leaves are being written when the first one fails."""
    (tmp_path / "fill.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from gptfl_jax import artifacts
            from gptfl_jax.launch import launch

            def run(config, workdir):
                noise = np.random.default_rng(0).random((200, 4000))
                with artifacts.Checkpoints(workdir / "c") as checkpoints:
                    checkpoints.save(1, {f"x{i}": row for i, row in enumerate(noise)})

            launch(run, ("data",))
            """
        )
    )
    command = [sys.executable, "fill.py", "--config=digits", "--workdir=disk"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        f"fill: cannot write to {small_disk / 'c'}: the disk is full. Free some space "
        "and start again: the run goes on from what was written\n"
    )


def test_read_only_folder_is_named(small_disk):
    with Checkpoints(small_disk / "c") as checkpoints:
        checkpoints.save(1, {"x": np.ones(3)})
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writes = (
        lambda: Checkpoints(small_disk / "c"),
        lambda: Checkpoints(small_disk / "new"),
        lambda: artifacts.write_text(small_disk / "f", ""),
        lambda: Metrics(small_disk / "m.jsonl"),
        lambda: artifacts.append_samples(small_disk, SAMPLES),
        lambda: artifacts.lock(small_disk).__enter__(),
    )
    for write in writes:
        with pytest.raises(artifacts.WriteError, match="read-only") as caught:
            write()
        assert str(small_disk) in str(caught.value)
    # Reading needs no right to write.
    restored = artifacts.restore_checkpoint(small_disk / "c", {"x": np.zeros(3)})
    np.testing.assert_array_equal(restored["x"], 1)


def test_two_processes_of_one_run_share_locks_and_checkpoints(tmp_path):
    code = """
        import sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec
        from gptfl_jax import artifacts

        port, process, folder = sys.argv[1:]
        jax.config.update("jax_num_cpu_devices", 2)
        jax.distributed.initialize(f"localhost:{port}", 2, int(process))
        mesh = Mesh(np.array(jax.devices()), ("data",))
        split = NamedSharding(mesh, PartitionSpec("data"))
        whole = NamedSharding(mesh, PartitionSpec())
        rows = np.arange(8.0, dtype=np.float32).reshape(4, 2)

        def place(array, sharding):
            return jax.make_array_from_callback(
                array.shape, sharding, lambda index: array[index]
            )

        state = {
            "rows": place(rows, split),
            "weights": place(rows, whole),
            "key": jax.random.key(5),
            "order": np.arange(3),
            "round": 4,
        }
        with artifacts.lock(folder):
            try:
                with artifacts.lock(folder):
                    print("not refused")
            except artifacts.WorkdirInUse as error:
                print("refused")
            metrics = artifacts.Metrics(folder + "/metrics.jsonl")
            metrics.write(1, accuracy=0.5)
            with artifacts.Checkpoints(folder + "/c", {"m": 1}, best="a") as saved:
                for step in (1, 2):
                    saved.save(step, state, {"a": 1 / step})
                saved.wait()
                assert saved.steps() == [1, 2] and saved.best_step() == 1
                restored = saved.restore(state, "best")
                assert restored["rows"].sharding == split
                for shard in restored["rows"].addressable_shards:
                    np.testing.assert_array_equal(shard.data, rows[shard.index])
                np.testing.assert_array_equal(
                    restored["weights"].addressable_data(0), rows
                )
                assert restored["round"] == 4
        print("done")
    """
    port = free_port()
    processes = [python(code, port, index, tmp_path) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
        assert output.split("\n")[-3:] == ["refused", "done", ""]
    assert artifacts.read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "accuracy": 0.5}
    ]
    template = {"rows": np.zeros((4, 2), np.float32)}
    restored = artifacts.restore_checkpoint(tmp_path / "c", template)
    np.testing.assert_array_equal(restored["rows"].ravel(), np.arange(8.0))


def free_port() -> int:
    import socket

    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


# Records


def test_require_names_the_command(tmp_path):
    assert artifacts.require(tmp_path, "x") == tmp_path
    with pytest.raises(
        UserError, match="prompts.json is missing: make it with `python"
    ):
        artifacts.require(tmp_path / "prompts.json", "python -m generate.prompts")


def test_run_record_says_how_it_was_run(tmp_path):
    config = ConfigDict({"seed": 3, "train": {"flip": True, "sizes": (1, 2)}})
    artifacts.write_run_record(tmp_path, config)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"] == {"seed": 3, "train": {"flip": True, "sizes": [1, 2]}}
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["devices"][0] == "cpu:0"
    assert record["argv"] == sys.orig_argv
