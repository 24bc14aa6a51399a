"""Files that appear whole or not at all: a temporary name beside them, fsync, rename.

A full disk and a read-only folder raise `WriteError`s that name the folder.
"""

import contextlib
import errno
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gptfl_jax.configuration import UserError

PathLike = str | os.PathLike[str]

# What a kill in the middle of a write leaves behind: `.name.<process id>`.
_LEFTOVER = re.compile(r"\..+\.\d+")


class WriteError(UserError):
    """A file could not be written: disk full, or no right to write."""


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file so that a kill leaves the old file or the new one, never a part."""
    write_files({path: data})


def write_text(path: PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """`write_bytes` of indented JSON; numpy scalars, tuples and paths are converted."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_files(files: Mapping[PathLike, bytes]) -> None:
    """`write_bytes` of many files, as a batch of images; folders are made as needed.

    Each file appears whole. They are flushed to disk side by side, which takes a
    fraction of the time of one after the other.
    """
    named = {pathlib.Path(path): data for path, data in files.items()}
    folders = dict.fromkeys(path.parent for path in named)
    # The form of these names is that of _LEFTOVER.
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in named}

    def write(path: pathlib.Path) -> None:
        with explained(path.parent), open(temporary[path], "wb") as file:
            file.write(named[path])
            file.flush()
            os.fsync(file.fileno())

    for folder in folders:
        make_folder(folder)
    try:
        if len(named) == 1:
            write(*named)
        else:
            with ThreadPoolExecutor(min(16, len(named) or 1)) as pool:
                list(pool.map(write, named))
        for path in named:
            with explained(path.parent):
                os.replace(temporary[path], path)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    for folder in folders:
        _flush_folder(folder)


def remove_leftovers(folder: PathLike) -> None:
    """Remove what kills in the middle of a write have left in a folder.

    Not in those below it. Only for who holds the folder's lock: another run's write may
    be under way.
    """
    if not os.path.isdir(folder):
        return
    with explained(folder), os.scandir(folder) as entries:
        leftovers = [each.path for each in entries if _LEFTOVER.fullmatch(each.name)]
        for path in leftovers:
            os.unlink(path)


def make_folder(folder: PathLike) -> pathlib.Path:
    """Make a folder and those above it.

    Raises:
        WriteError: no right to, no space, or a file has its name.
    """
    folder = pathlib.Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _flush_folder(folder: pathlib.Path) -> None:
    """Make renames in a folder durable, where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def explained(folder: PathLike) -> Iterator[None]:
    """Turn the errors of a failed write into a `WriteError` that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise WriteError(f"cannot write to {os.fspath(folder)}: {reason}") from error


def _write_failure(error: BaseException) -> str | None:
    """What a user can do about a failed write; None if it is another error."""
    code = error.errno if isinstance(error, OSError) else None
    # tensorstore, below orbax, raises ValueErrors with the system's text in them.
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or any(
        os.strerror(each) in text for each in (errno.ENOSPC, errno.EDQUOT)
    ):
        return (
            "the disk is full. Free some space and start again: the run goes on "
            "from what was written"
        )
    if code in (errno.EROFS, errno.EACCES, errno.EPERM) or any(
        os.strerror(each) in text for each in (errno.EROFS, errno.EACCES)
    ):
        return (
            "it is read-only or belongs to someone else. Choose another --workdir, "
            "or change its permissions"
        )
    if code in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed. Choose another --workdir"
    return None


def plain(value: Any) -> Any:
    """The JSON form of a value: NaN and the infinities, which JSON lacks, are null."""
    if isinstance(value, ConfigDict):
        return plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")
