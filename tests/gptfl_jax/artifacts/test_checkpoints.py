"""What was saved is restored, or damage is noticed."""

import math
import os
import pathlib
import re
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

from gptfl_jax import artifacts
from gptfl_jax.artifacts import Checkpoints, Metrics
from gptfl_jax.artifacts.checkpoints import _is_key
from gptfl_jax.errors import UserError

from .common import SAMPLES, files_below, python


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
