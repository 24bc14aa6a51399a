"""One program writes into a folder at a time."""

import shutil

import pytest

from gptfl_jax import artifacts
from gptfl_jax.artifacts import Checkpoints, Metrics, digests

from .common import SAMPLES, files_below, python


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
