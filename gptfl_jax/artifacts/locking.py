"""One run at a time in a folder: a lock that no kill leaves behind."""

import contextlib
import datetime
import fcntl
import os
import pathlib
import platform
import time
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from gptfl_jax.artifacts.files import (
    PathLike,
    WriteError,
    make_folder,
    open_to_write,
    remove_leftovers,
    require_no_link,
)
from gptfl_jax.errors import UserError

# The folders that this process holds, each with the descriptor of its lock file.
_HELD: dict[str, int] = {}


class WorkdirInUse(UserError):
    """Another run is writing to this folder."""


@contextlib.contextmanager
def lock(folder: PathLike, workdir: PathLike | None = None) -> Iterator[None]:
    """Holds a folder for this run; a second run is refused.

    The kernel drops the lock when the process ends, however it ends, so a kill leaves
    no lock behind; parts of files that it has left in the folder are removed. Of
    several processes of one run the first takes the lock, and all of them learn whether
    it got it, and whether they see the same folder.

    Args:
        workdir: the folder that the user named; no link is followed from there to
            `folder`. None: they are the same.

    Raises:
        WorkdirInUse: another run holds the folder.
        WriteError: the folder cannot be written to, or leads through a link.
        UserError: it is not the same folder for all processes.
    """
    refusal: UserError | None = None
    descriptor = None
    if jax.process_index() == 0:
        try:
            require_no_link(folder, folder if workdir is None else workdir)
            descriptor = _take_lock(pathlib.Path(folder))
            remove_leftovers(folder)
        except UserError as error:
            refusal = error
    if jax.process_count() > 1:
        refused = multihost_utils.broadcast_one_to_all(np.bool_(refusal is not None))
        if refused and refusal is None:
            refusal = WorkdirInUse(f"{folder} is not free: process 0 says why")
        elif not refused:
            refusal = _not_shared(pathlib.Path(folder))
    try:
        if refusal is not None:
            raise refusal
        held = os.path.realpath(folder)
        if descriptor is not None:
            _HELD[held] = descriptor
        try:
            yield
        finally:
            _HELD.pop(held, None)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def require_held(path: PathLike) -> None:
    """Makes sure that the locks of this process still keep others from a path.

    Called before what two runs would mix: lines of a file, checkpoints.

    Raises:
        WorkdirInUse: the lock file of a folder above the path was deleted or replaced
            since this process took it, so another run may have taken the new one.
    """
    path = os.path.realpath(path)
    for folder, descriptor in list(_HELD.items()):
        if path.startswith(os.path.join(folder, "")) and not _is_at(
            descriptor, pathlib.Path(folder, ".lock")
        ):
            raise WorkdirInUse(
                f"{folder}/.lock was deleted or replaced under this run, so another "
                "run may be writing there too. It stops here: see that no other is "
                "running, then start the same command again"
            )


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _take_lock(folder: pathlib.Path) -> int:
    make_folder(folder)
    path = folder / ".lock"
    descriptor = open_to_write(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise WorkdirInUse(
            f"{folder} is in use by another run ({holder or 'unknown'}). "
            "Wait for it to end, or choose another --workdir"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise WriteError(
            f"cannot lock {folder}: {error.strerror}. Choose another --workdir"
        ) from error
    if not _is_at(descriptor, path):
        # Deleted between opening and locking: take the one that is there now.
        os.close(descriptor)
        return _take_lock(folder)
    # Only for the message above: the lock is the kernel's, not this text.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        holder = f"process {os.getpid()} on {platform.node()} since {now}\n"
        os.write(descriptor, holder.encode())
        os.fsync(descriptor)
    return descriptor


def _not_shared(folder: pathlib.Path) -> UserError | None:
    """The error where a process does not find the lock that the first has taken."""

    def seen() -> int:
        try:
            return zlib.crc32((folder / ".lock").read_bytes())
        except OSError:
            return 0

    expected = int(multihost_utils.broadcast_one_to_all(np.uint32(seen())))
    # Network file systems may show a new file late.
    patience = 20
    while seen() != expected and patience:
        time.sleep(0.5)
        patience -= 1
    same = multihost_utils.process_allgather(np.bool_(seen() == expected))
    if same.all():
        return None
    return UserError(
        f"process {np.argmin(same)} does not see what process 0 writes to {folder}: "
        "take a --workdir that all hosts share, as a folder on NFS"
    )
