"""Pictures decoded once: kept on disk as arrays, which are mapped into memory.

A set of more than a few hundred pictures is decoded in blocks. A block is a file of
pixels and one of what else is known of them, in a folder of the user's, named by the
content of the pictures and by how they are decoded: a set that moves is found, and a
picture that changes is decoded again. A kill loses the block under way. Processes that
decode the same set share the blocks between them.

    $GPTFL_CACHE_DIR/pictures/      or gptfl-jax/pictures in the user's cache folder

It may be deleted at any time. When a set is added, blocks are deleted that no run has
used for a month, and where the disk is full, those used longest ago.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import filelock
import numpy as np
import PIL
import threadpoolctl
from tqdm.auto import tqdm

from gptfl_jax import artifacts, devices, user_files
from gptfl_jax.cache_folder import cache_folder
from gptfl_jax.data import images
from gptfl_jax.data.stored_rows import Part, Rows, StoredRows, digest
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say

BLOCK = 512
"""Pictures a file. A set of no more is decoded each time."""

# What a picture becomes may change with these.
_VERSION = ("1", PIL.__version__)
# A file changed so lately may change again and look the same to the file system.
_SETTLED_S = 10.0
# So long a block is kept that no run uses, and where the disk has no room for others.
# Who has mapped one reads it after it was deleted, too.
_KEPT_S, _DAY_S = 30 * 24 * 3600.0, 24 * 3600.0
# A block's files, and those of `contents_of`, are named by a digest.
_NAME = re.compile(r"[0-9a-f]{64}")
_NOTED = {"digests": [("text", "null")], "notes": [["anything"]]}

Read = Callable[[Any], tuple[np.ndarray | None, list]]
"""item -> (pixels uint8 [height, width, channels], None where there is no picture; what
else is to be kept, as JSON has it)"""


class Decoded(NamedTuple):
    """What became of the items."""

    contents: list[str]
    """Digest of each item's content; empty where they have none."""
    notes: list[list]
    """Of each item."""
    sizes: list[tuple[int, int] | None]
    """Height and width of each item's pixels; None: no picture."""
    blocks: list["_Block"]

    def take(self, items: Sequence[int]) -> Rows:
        """The pixels of these items, in order: pictures of one size.

        An array of a set of one block, else not read.
        """
        chosen = np.zeros(len(self.notes), bool)
        chosen[list(items)] = True
        parts, numbers, start, before = [], [], 0, 0
        for block in self.blocks:
            has = np.array([each is not None for each in block.digests], bool)
            rows = np.flatnonzero(chosen[start : start + len(has)][has])
            start += len(has)
            if not len(rows):
                continue
            digests = np.array([d for d in block.digests if d is not None], "S32")
            pixels = block.pixels
            if isinstance(pixels, list):
                pixels = images.stack([pixels[row] for row in rows])
                digests, rows = digests[rows], np.arange(len(rows))
            parts.append(Part(pixels, digests))
            numbers.append(before + rows)
            before += len(pixels)
        stored = StoredRows(parts, np.concatenate(numbers))
        return stored if len(self.blocks) > 1 else stored[:]


class _Block(NamedTuple):
    pixels: np.ndarray | list[np.ndarray]
    """Of the items that are pictures; a list where they are of several sizes."""
    digests: list[str | None]
    """Of each item's pixels; None: no picture."""
    notes: list[list]


def decode_files(
    files: Sequence[pathlib.Path | images.Embedded],
    read: Callable[[Any], images.Picture],
    options: Sequence[Any],
    description: str,
) -> tuple[Decoded, list[images.Picture]]:
    """Decodes files, see `decode`.

    Args:
        read: decodes one.
        options: what `read` depends on besides the file, as JSON has it.
        description: of the progress bar.

    Returns:
        the pixels, and what else there is to say of each file: a `Picture` without
        pixels.
    """

    def read_one(file: Any) -> tuple[np.ndarray | None, list]:
        picture = read(file)
        return picture.pixels, [*picture.size, picture.mode, picture.error]

    decoded = decode(files, contents_of, read_one, ["files", *options], description)
    about = [
        images.Picture(None, (width, height), mode, error)
        for width, height, mode, error in decoded.notes
    ]
    return decoded, about


def decode(
    items: Sequence[Any],
    contents: Callable[[Sequence[Any]], list[str]] | None,
    read: Read,
    options: Sequence[Any],
    description: str,
) -> Decoded:
    """Decodes items in threads, with a progress bar, or finds them decoded.

    Args:
        items: one or more.
        contents: items -> a digest of the content of each. None: they have none, and
            are decoded each time.
        read: decodes an item.
        options: what `read` depends on besides the content, as JSON has it.
        description: of the progress bar.

    Raises:
        UserError: decoded pictures can neither be kept on disk nor held in memory.
    """
    parts = [items[start : start + BLOCK] for start in range(0, len(items), BLOCK)]
    blocks: list[_Block | None] = [None] * len(parts)
    known: list[list[str]] = [[] for _ in parts]
    workers = min(32, (os.cpu_count() or 1) + 4)
    bar = tqdm(
        total=len(items), desc=description, unit="img", disable=None, mininterval=0.5
    )
    # Threads have a picture each. Were its resizing split over threads as well, they
    # would mostly wait for each other.
    alone = threadpoolctl.threadpool_limits(1, "blas")
    with alone, bar, concurrent.futures.ThreadPoolExecutor(workers) as pool:

        def fresh(part: Sequence[Any]) -> _Block:
            return _decode_block(part, read, pool, bar)

        store = _Store(len(items), [*_VERSION, *options], description)
        # What another process is decoding is left to it at first.
        for patient in (False, True):
            for number, part in enumerate(parts):
                if blocks[number] is not None:
                    continue
                before = bar.n
                if contents is None or len(parts) == 1:
                    known[number] = contents(part) if contents else []
                    blocks[number] = fresh(part)
                else:
                    known[number] = contents(part)
                    blocks[number] = store.get(
                        part, known[number], contents, fresh, patient
                    )
                if blocks[number] is not None:
                    bar.update(before + len(part) - bar.n)
        store.report()
    sizes = []
    for block in blocks:
        pixels = iter(block.pixels)
        sizes += [None if d is None else next(pixels).shape[:2] for d in block.digests]
    return Decoded(
        [each for some in known for each in some],
        [note for block in blocks for note in block.notes],
        sizes,
        blocks,
    )


def contents_of(
    files: Sequence[str | os.PathLike | images.Embedded],
) -> list[str]:
    """SHA-256 of each file, in hexadecimal; empty for one that cannot be read.

    Files that look the same to the file system as when they were read are not read
    again.
    """
    if any(isinstance(file, images.Embedded) for file in files):
        return [_digest_of_file(file) for file in files]
    status = [_status(file) for file in files]
    name = hashlib.sha256(json.dumps(status).encode()).hexdigest()
    path = cache_folder("pictures") / "known" / name[:2] / f"{name}.json"
    with contextlib.suppress(FileNotFoundError, UserError):
        known = artifacts.read_json(path, ["text"], "")
        if len(known) == len(files):
            _mark_used(path)
            return known
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest_of_file, files))
    newest = max((each[2] for each in status if each), default=0)
    if all(digests) and time.time() - newest / 1e9 > _SETTLED_S:
        with contextlib.suppress(UserError):
            artifacts.write_json(path, digests)
    return digests


def _status(file: str | os.PathLike) -> list | None:
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return None
    place = os.fsencode(os.path.abspath(file)).hex()
    return [place, status.st_size, status.st_mtime_ns]


def _digest_of_file(path: str | os.PathLike | images.Embedded) -> str:
    if isinstance(path, images.Embedded):
        return hashlib.sha256(path.content).hexdigest()
    try:
        with user_files.open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (user_files.Unreadable, OSError):
        return ""


def _decode_block(
    part: Sequence[Any], read: Read, pool: concurrent.futures.Executor, bar: tqdm
) -> _Block:
    def one(item: Any) -> tuple[np.ndarray | None, list, str | None]:
        picture, note = read(item)
        return picture, note, None if picture is None else digest(picture).decode()

    made = []
    for each in pool.map(one, part):
        made.append(each)
        bar.update()
    pixels = [picture for picture, *_ in made if picture is not None]
    if len({picture.shape[:2] for picture in pixels}) == 1:
        pixels = images.stack(pixels)
    return _Block(pixels, [each for *_, each in made], [note for _, note, _ in made])


class _Store:
    """The blocks on disk, as far as the disk takes them."""

    def __init__(self, count: int, options: Sequence[Any], description: str):
        self._left, self._options, self._description = count, options, description
        self._folder = cache_folder("pictures")
        self._written = self._held = self._deleted = 0
        self._refused = ""

    def get(
        self,
        part: Sequence[Any],
        known: list[str],
        contents: Callable[[Sequence[Any]], list[str]],
        fresh: Callable[[Sequence[Any]], _Block],
        patient: bool,
    ) -> _Block | None:
        """A block, decoded here where it must be; None: another process is at it."""
        key = json.dumps([self._options, known])
        name = hashlib.sha256(key.encode()).hexdigest()
        path = self._folder / name[:2] / name
        with contextlib.ExitStack() as stack:
            found = _load(path, len(part))
            if found is None and not self._refused:
                if not self._lock(stack, path.with_suffix(".lock"), patient):
                    return None
                found = _load(path, len(part))
            if found is None:
                found = fresh(part)
                # Not of several sizes; and what was decoded is what was looked up.
                one_size = isinstance(found.pixels, np.ndarray)
                if one_size and not self._refused and contents(part) == known:
                    found = self._keep(path, found)
                if self._refused:
                    self._hold(found)
        self._left -= len(part)
        return found

    def _lock(self, stack: contextlib.ExitStack, path: pathlib.Path, wait: bool):
        """Whether the block may be decoded here: no other process is at it."""
        try:
            artifacts.make_folder(path.parent)
            lock = filelock.FileLock(path)
            stack.enter_context(lock.acquire(timeout=-1 if wait else 0))
            # Taken away while it is held: who waits for it finds the block.
            stack.callback(path.unlink, missing_ok=True)
        except filelock.Timeout:
            return False
        except UserError as error:
            self._refuse(error)
        except (OSError, NotImplementedError):
            pass  # a file system without locks: work may be done twice, no more
        return True

    def _keep(self, path: pathlib.Path, block: _Block) -> _Block:
        """Puts a block on disk, and gives it as it lies there."""
        need = block.pixels.nbytes // len(block.pixels) * self._left
        try:
            if shutil.disk_usage(path.parent).free < need:
                self._deleted += _delete_unused(self._folder, _DAY_S, need)
            if (free := shutil.disk_usage(path.parent).free) < need:
                raise UserError(f"it has {_size(free)} free, of {_size(need)} needed")
            artifacts.remove_leftovers(path.parent)
            noted = {"digests": block.digests, "notes": block.notes}
            # In this order: who finds the second finds the first.
            artifacts.write_bytes(path.with_suffix(".npy"), _npy(block.pixels))
            artifacts.write_json(path.with_suffix(".json"), noted)
        except (UserError, OSError) as error:
            self._refuse(error)
            return block
        self._written += block.pixels.nbytes
        return _load(path, len(block.notes)) or block

    def _refuse(self, error: Exception) -> None:
        cause = error.__cause__ or error
        self._refused = getattr(cause, "strerror", None) or str(cause)
        say(
            f"{self._description}: decoded pictures are held in memory and not kept in "
            f"{self._folder} ({self._refused}): set GPTFL_CACHE_DIR to a folder that "
            "takes them"
        )

    def _hold(self, block: _Block) -> None:
        self._held += sum(picture.nbytes for picture in block.pixels)
        if self._held > devices.machine_memory() / 2:
            raise UserError(
                f"{self._description}: decoded pictures take more than half of the "
                f"memory, and {self._folder} does not take them ({self._refused}): set "
                "GPTFL_CACHE_DIR to a folder that does"
            )

    def report(self) -> None:
        """Says what was put on disk, and what is no longer there."""
        if self._written:
            self._deleted += _delete_unused(self._folder, _KEPT_S)
        if self._deleted:
            say(
                f"{self._description}: {_size(self._deleted)} of decoded pictures that "
                f"no run has used lately were deleted from {self._folder}"
            )
        if self._written:
            say(
                f"{self._description}: {_size(self._written)} of decoded pictures are "
                f"kept in {self._folder} (GPTFL_CACHE_DIR) and may be deleted"
            )


def _load(path: pathlib.Path, count: int) -> _Block | None:
    """A block of so many items, mapped into memory; None: it is not there, whole."""
    try:
        noted = artifacts.read_json(path.with_suffix(".json"), _NOTED, "")
        user_files.open_plain(path.with_suffix(".npy")).close()
        pixels = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, UserError, ValueError, OSError, EOFError):
        return None
    digests, notes = noted["digests"], noted["notes"]
    fits = len(digests) == len(notes) == count and pixels.dtype == np.uint8
    pictures = sum(each is not None for each in digests)
    if not fits or pixels.ndim != 4 or len(pixels) != pictures or not pictures:
        return None
    _mark_used(path.with_suffix(".json"))
    return _Block(pixels, digests, notes)


def _mark_used(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _delete_unused(folder: pathlib.Path, age: float, need: int | None = None) -> int:
    """Deletes what no run has used for so many seconds, the oldest first.

    Args:
        need: enough is deleted when the disk has so many bytes free.

    Returns:
        how many bytes.
    """
    now, found, deleted = time.time(), [], 0
    for path in folder.glob("**/*.json"):
        if _NAME.fullmatch(path.stem):
            with contextlib.suppress(OSError):
                found.append((path.lstat().st_mtime, path))
    for used, path in sorted(found):
        if now - used < age:
            break
        if need is not None and shutil.disk_usage(folder).free >= need:
            break
        # In this order: who finds the first finds the second.
        for file in (path, path.with_suffix(".npy")):
            with contextlib.suppress(OSError):
                size = file.lstat().st_size
                file.unlink()
                deleted += size
    return deleted


def _npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    return file.getvalue()


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
