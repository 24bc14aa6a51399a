"""Files that users name: only plain files are opened, and no more is read than needed.

A reader states how large its files can sensibly be. What a file declares (pixels,
samples, members, shapes) is checked before memory is taken for it.
"""

import contextlib
import io
import math
import os
import stat
import sys
import threading
from collections.abc import Iterator

import numpy as np

from gptfl_jax.errors import UserError

PathLike = str | os.PathLike[str]


class Unreadable(UserError):
    """A file that cannot be used; `reason` is why, without its name and the remedy."""

    def __init__(
        self, path: object, reason: str, remedy: str = "get the file again"
    ) -> None:
        super().__init__(f"{printable(path)}: {reason}: {remedy}")
        self.reason = reason


def open_plain(path: PathLike, most_bytes: int = sys.maxsize) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
        Unreadable: there is none, it is no plain file (a named pipe would be waited
            for), or it is larger than `most_bytes`.
    """

    def opener(name, flags):
        return os.open(name, flags | os.O_NONBLOCK)

    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", opener=opener))
            size = _plain_size(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise Unreadable(path, f"cannot be read ({reason})") from error
        if size > most_bytes:
            raise Unreadable(
                path,
                f"has {size:,} bytes, more than the {most_bytes:,} that such a file "
                "can need",
            )
        stack.pop_all()
    return file


def _plain_size(file: io.BufferedReader) -> int:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no plain file")
    return status.st_size


def read_bytes(path: PathLike, most_bytes: int) -> bytes:
    """Content of a file.

    Raises:
        Unreadable: as `open_plain`, or reading fails.
    """
    with open_plain(path, most_bytes) as file:
        try:
            # A file that grows meanwhile is no reason to read on.
            return file.read(most_bytes)
        except OSError as error:
            raise Unreadable(path, f"cannot be read ({error.strerror})") from error


def read_text(path: PathLike, most_bytes: int) -> str:
    """Content of a text file in UTF-8, with or without a byte order mark.

    Raises:
        Unreadable: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, most_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"cannot be read ({error})") from error


def array_from(content: bytes) -> np.ndarray:
    """The array in the bytes of a `.npy` file, whose size is that of its header.

    Raises:
        ValueError: they are damaged or hold something else.
    """
    file = io.BytesIO(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        version = np.lib.format.read_magic(file)
        shape, columns_first, dtype = read_header[version](file)
    except Exception as error:  # a damaged header raises almost anything
        raise ValueError(f"no .npy file: {error}") from error
    if dtype.hasobject or dtype.fields or dtype.subdtype:
        raise ValueError(f"it holds {dtype}, not plain numbers")
    count, itemsize = math.prod(shape), dtype.itemsize
    if min(shape, default=0) < 0 or count * itemsize != len(content) - file.tell():
        raise ValueError(f"its data are not those of {dtype} numbers of shape {shape}")
    array = np.frombuffer(content, dtype, count, file.tell())
    return array.reshape(shape, order="F" if columns_first else "C")


def read_array(path: PathLike, most_bytes: int) -> np.ndarray:
    """The array in a `.npy` file; nothing in it is executed.

    Raises:
        Unreadable: as `read_bytes`, or it is damaged or holds something else.
    """
    try:
        return array_from(read_bytes(path, most_bytes))
    except ValueError as error:
        raise Unreadable(path, f"cannot be read ({brief(error)})") from error


def brief(error: BaseException) -> str:
    """What an error of a library says, in one short line."""
    text = printable(next(iter(str(error).splitlines()), ""))[:200]
    if isinstance(error, ValueError | OSError) and text:
        return text
    return f"{type(error).__name__}: {text}"


def printable(text: object) -> str:
    """A text or path on one line: what cannot be printed is written as `\\x1b`."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


class Allowance:
    """Lets threads hold so much between them, as pixels or samples, and not more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._left = most
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Waits until `amount` (at most `most`) can be had, and has it meanwhile."""
        if amount > self.most:
            raise ValueError(f"{amount} is more than {self.most}")
        with self._changed:
            self._changed.wait_for(lambda: amount <= self._left)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()
