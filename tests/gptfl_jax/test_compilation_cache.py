"""Every program here starts JAX in a process of its own, as a user's does."""

import os
import pathlib
import subprocess
import sys

import pytest

# Compiles `sys.argv[1]` functions, from number `sys.argv[2]` on; says where they are
# kept and how many were there already.
PROGRAM = """
import resource, signal, sys
import jax
import jax.numpy as jnp
from gptfl_jax import compilation_cache

count, first, limit, largest_file = map(int, sys.argv[1:])
compilation_cache.LIMIT_BYTES = limit
print(compilation_cache.start())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(1) if event.endswith("/cache_hits") else None
)
if largest_file:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
x = jnp.arange(4.0)
before = len(hits)
for i in range(first, first + count):
    jax.jit(lambda x: jnp.sin(x * i) @ x)(x).block_until_ready()
print(len(hits) - before)
"""


def start(cache, count=3, first=1, limit=2**30, largest_file=0, **environment):
    known = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "GPTFL_"))
    }
    numbers = map(str, (count, first, limit, largest_file))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *numbers],
        env=known | {"XDG_CACHE_HOME": str(cache)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """(where entries are kept, how many of the functions were among them)"""
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    folder, hits = output.splitlines()
    return folder, int(hits)


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_a_later_start_finds_what_an_earlier_one_compiled(tmp_path):
    folder, hits = finish(start(tmp_path))
    kept = pathlib.Path(folder)
    assert kept.parent == tmp_path / "gptfl-jax" / "compiled"
    assert hits == 0
    entries = sorted(kept.glob("*-cache"))
    # A kill between the two files of an entry, and one while it was written.
    times = sorted(kept.glob("jit__lambda*-atime"))
    times[0].unlink()
    times[1].write_bytes(b"")
    assert finish(start(tmp_path)) == (folder, 1)
    assert sorted(kept.glob("*-cache")) == entries


def test_a_folder_for_all_that_is_kept(tmp_path):
    folder, _ = finish(
        start(tmp_path / "unused", GPTFL_CACHE_DIR=str(tmp_path / "all"))
    )
    assert pathlib.Path(folder).parent == tmp_path / "all" / "compiled"
    assert not (tmp_path / "unused").exists()


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "gptfl-jax").write_text("a file in the way")
    where, hits = finish(start(tmp_path))
    assert where.startswith("off: ") and str(tmp_path / "gptfl-jax") in where
    assert hits == 0


def test_a_full_disk_ends_nothing_and_leaves_nothing_broken(tmp_path):
    folder, hits = finish(start(tmp_path, largest_file=500))
    assert hits == 0
    assert finish(start(tmp_path)) == (folder, 0)
    assert finish(start(tmp_path)) == (folder, 3)


def test_another_folder_may_be_named_or_none(tmp_path):
    named = tmp_path / "mine"
    processes = [
        start(tmp_path, JAX_COMPILATION_CACHE_DIR=str(named)),
        start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0"),
    ]
    assert finish(processes[0]) == (str(named), 0)
    assert list(named.glob("*-cache"))
    where, _ = finish(processes[1])
    assert where == "off, by JAX_ENABLE_COMPILATION_CACHE"
    assert not (tmp_path / "gptfl-jax").exists()


def test_programs_at_once_keep_to_the_limit(tmp_path):
    limit = 40_000
    processes = [start(tmp_path, 12, 1 + i % 2, limit) for i in range(4)]
    folders = {finish(process)[0] for process in processes}
    sizes = [entry.stat().st_size for entry in pathlib.Path(*folders).glob("*-cache")]
    assert limit / 2 < sum(sizes) <= limit
    # The last one is among those that were kept.
    assert finish(start(tmp_path, 1, 13, limit))[1] == 1
