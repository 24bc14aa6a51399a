"""What XLA has compiled, kept on disk from one start of a program to the next.

JAX does the work; here is where and how much. Every program of a user shares one
folder, several at once as well: a lock guards it, and the entries used least recently
make room for new ones.
"""

import pathlib
import platform
import warnings
import zlib

import filelock
import jax

from gptfl_jax.cache_folder import cache_folder

LIMIT_BYTES = 2 * 2**30
"""All that is kept for one kind of processor."""

# What JAX calls the files of an entry, and the lock that it takes to touch any.
_ENTRY, _LAST_USE, _LOCK = "-cache", "-atime", ".lockfile"


def start() -> str:
    """Turns the cache on for this process, if it can be.

    A folder that is named already, as by `JAX_COMPILATION_CACHE_DIR`, is left to JAX
    with all its settings.

    Returns:
        Where it is, or why there is none, in a few words.
    """
    if not jax.config.jax_enable_compilation_cache:
        return "off, by JAX_ENABLE_COMPILATION_CACHE"
    if jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir
    folder = cache_folder("compiled") / _processor()
    try:
        _prepare(folder)
    except (OSError, filelock.Timeout) as error:
        return f"off: {error}"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LIMIT_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # A disk that is full by now costs time, and is none of the user's concern here.
    for verb in ("reading", "writing"):
        warnings.filterwarnings("ignore", f"Error {verb} persistent compilation cache")
    return str(folder)


def _processor() -> str:
    """A name for machines that run the same instructions.

    Machine code for one processor may end a process on another, and a home folder may
    be shared by several.
    """
    about = [platform.machine(), platform.processor()]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        keys = ("model name", "flags", "Features", "CPU part")
        lines = cpuinfo.read_text().splitlines()
        about += sorted({line for line in lines if line.startswith(keys)})
    return f"{platform.machine()}-{zlib.crc32(repr(about).encode()):08x}"


def _prepare(folder: pathlib.Path) -> None:
    """Makes sure that entries can be written, and sweeps those cut short by a kill.

    JAX writes an entry, then when it was used last. Without that it could neither read
    the entry nor make room for others.

    Raises:
        OSError: the folder cannot be made or written to.
        filelock.Timeout: another program has held the lock for 10 seconds.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with filelock.FileLock(folder / _LOCK, timeout=10):
        probe = folder / ".probe"
        probe.write_bytes(bytes(4096))
        probe.unlink()
        for entry in folder.glob(f"*{_ENTRY}"):
            used = entry.with_name(entry.name.removesuffix(_ENTRY) + _LAST_USE)
            if not used.exists() or used.stat().st_size == 0:
                entry.unlink()
                used.unlink(missing_ok=True)
