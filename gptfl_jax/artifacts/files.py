"""Files that appear whole or not at all: a temporary name beside them, fsync, rename.

A full disk and a read-only folder raise `WriteError`s that name the folder.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from gptfl_jax.errors import UserError

PathLike = str | os.PathLike[str]

# What a kill in the middle of a write leaves behind. No one else gives such names.
_ENDING = ".gptfl-part"
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}" + re.escape(_ENDING))
_OF_EARLIER = re.compile(r"\.(?P<name>.+)\.\d+")
# Files of one batch that are open at once.
_OPEN_AT_ONCE = 64


class WriteError(UserError):
    """A file could not be written: disk full, no right to write, or a link."""


def write_bytes(path: PathLike, data: bytes) -> None:
    """Writes a file so that a kill leaves the old file or the new one, never a part."""
    write_files({path: data})


def write_text(path: PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text; what is not Unicode is written as an escape."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: PathLike, value: Any) -> None:
    """`write_bytes` of indented JSON; numpy scalars, tuples and paths are converted."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_files(files: Mapping[PathLike, bytes]) -> None:
    """`write_bytes` of many files, as a batch of images; folders are made as needed.

    Each file appears whole. They are flushed to disk side by side, which takes a
    fraction of the time of one after the other. A link in a file's place is replaced,
    not followed.
    """
    named = [(pathlib.Path(path), data) for path, data in files.items()]
    folders = dict.fromkeys(path.parent for path, _ in named)
    for folder in folders:
        make_folder(folder)
    for start in range(0, len(named), _OPEN_AT_ONCE):
        _write_together(named[start : start + _OPEN_AT_ONCE])
    for folder in folders:
        flush_folder(folder)


def _write_together(files: Sequence[tuple[pathlib.Path, bytes]]) -> None:
    temporary = [
        path.with_name(f".{secrets.token_hex(8)}{_ENDING}") for path, _ in files
    ]

    def write(name: pathlib.Path, path: pathlib.Path, data: bytes) -> None:
        with explained(path.parent):
            file = stack.enter_context(open(name, "xb"))
            # Held until the file has its own name: it is no leftover. Where a file
            # system has no locks, no run can take the folder's, and none will sweep.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    with contextlib.ExitStack() as stack:
        try:
            if len(files) == 1:
                write(temporary[0], *files[0])
            else:
                with ThreadPoolExecutor(16) as pool:
                    list(pool.map(write, temporary, *zip(*files, strict=True)))
            for name, (path, _) in zip(temporary, files, strict=True):
                with explained(path.parent):
                    os.replace(name, path)
        except BaseException:
            for name in temporary:
                with contextlib.suppress(OSError):
                    name.unlink(missing_ok=True)
            raise


def remove_leftovers(folder: PathLike, names: Iterable[str] = ()) -> None:
    """Removes what kills in the middle of a write have left in a folder.

    Not in those below it, and nothing that is still being written.

    Args:
        names: of files that only this project writes there. Earlier versions left
            parts of them as `.<name>.<process id>`, which go too. Only for who holds
            the folder's lock.
    """
    if not os.path.isdir(folder):
        return
    names = set(names)
    with explained(folder), os.scandir(folder) as entries:
        for entry in entries:
            of_earlier = _OF_EARLIER.fullmatch(entry.name)
            if of_earlier and of_earlier["name"] in names:
                os.unlink(entry.path)
            elif _LEFTOVER.fullmatch(entry.name):
                _remove_unless_open(entry.path)


def _remove_unless_open(path: str) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
        finally:
            os.close(descriptor)


def make_folder(folder: PathLike) -> pathlib.Path:
    """Makes a folder and those above it.

    Raises:
        WriteError: no right to, no space, or a file has its name.
    """
    folder = pathlib.Path(folder)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def require_no_link(path: PathLike, below: PathLike) -> None:
    """Refuses a path that leads through a link, which may point anywhere.

    Args:
        below: the folder from which on links count; it may be one itself.

    Raises:
        WriteError: the path, or a folder between the two, is a link.
    """
    path, below = pathlib.Path(path), pathlib.Path(below)
    for part in (path, *path.parents):
        if part == below:
            break
        if part.is_symlink():
            raise WriteError(
                f"{part} is a link, and no link is followed for writing: remove it, "
                "or put the whole --workdir where it leads to"
            )


def open_to_write(path: pathlib.Path) -> int:
    """Opens a file for reading and writing, which is made where it is missing.

    Returns:
        its descriptor.

    Raises:
        WriteError: no right to, or it is a link or no file.
    """
    require_no_link(path, path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with explained(path.parent):
        descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WriteError(f"{path} is no plain file: remove it")
    return descriptor


def read_plain(path: PathLike) -> bytes:
    """The content of a file.

    Raises:
        OSError: it is missing, cannot be read, or is no plain file, as a pipe, which
            would be waited for.
    """
    # Not to wait in open() for who writes into a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no plain file")
        return file.read()


def flush_folder(folder: pathlib.Path) -> None:
    """Makes renames in a folder durable, where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def explained(folder: PathLike) -> Iterator[None]:
    """Turns the errors of a failed write into a `WriteError` that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise WriteError(f"cannot write to {os.fspath(folder)}: {reason}") from error


_FULL = (errno.ENOSPC, errno.EDQUOT)
_TOO_LARGE = (errno.EFBIG,)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def _write_failure(error: BaseException) -> str | None:
    """What a user can do about a failed write; None if it is another error."""

    def is_one_of(codes: Sequence[int]) -> bool:
        # tensorstore, below orbax, raises ValueErrors with the system's text in them.
        text = "" if isinstance(error, OSError) else str(error)
        return getattr(error, "errno", None) in codes or any(
            os.strerror(each) in text for each in codes
        )

    if is_one_of(_FULL):
        return (
            "the disk is full. Free some space and start again: the run goes on "
            "from what was written"
        )
    if is_one_of(_TOO_LARGE):
        return (
            "a file is larger than this process or the disk allows. Raise the limit "
            "(ulimit -f), or choose another --workdir, and start again: the run goes "
            "on from what was written"
        )
    if is_one_of(_FORBIDDEN):
        return (
            "it is read-only or belongs to someone else. Choose another --workdir, "
            "or change its permissions"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed. Choose another --workdir"
    if error.errno == errno.EISDIR:
        return "a folder stands where a file is needed. Choose another --workdir"
    reason = error.strerror or str(error)
    return f"{reason[:1].lower()}{reason[1:]}. Choose another --workdir"


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
