"""One run at a time in a folder."""

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

from gptfl_jax.artifacts.files import PathLike, WriteError, explained, make_folder
from gptfl_jax.configuration import UserError


class WorkdirInUse(UserError):
    """Another run is writing to this folder."""


@contextlib.contextmanager
def lock(folder: PathLike) -> Iterator[None]:
    """Hold a folder for this run; a second run is refused.

    The kernel drops the lock when the process ends, however it ends, so a kill leaves
    nothing to clean up. Of several processes of one run the first takes the lock, and
    all of them learn whether it got it, and whether they see the same folder.

    Raises:
        WorkdirInUse: another run holds the folder.
        WriteError: the folder cannot be written to.
        UserError: it is not the same folder for all processes.
    """
    refusal: UserError | None = None
    descriptor = None
    if jax.process_index() == 0:
        try:
            descriptor = _take_lock(pathlib.Path(folder))
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
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take_lock(folder: pathlib.Path) -> int:
    make_folder(folder)
    with explained(folder):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
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
