"""What a program writes on: harmless to a terminal, and read for as long as it is."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

# Control characters but for tabs and the ends of lines: a terminal obeys them.
_CONTROLS = {
    code: f"\\x{code:02x}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n\r"
}


def printable(text: str) -> str:
    """A text that may hold names from files and servers, harmless to a terminal."""
    text = text.translate(_CONTROLS)
    return text.encode(errors="backslashreplace").decode()


class Unbroken:
    """A text stream that goes nowhere once its reader is gone, as that of `| head`.

    A long run does not end for that.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Plain(Unbroken):
    """One on which every text is `printable`."""

    def __init__(self, stream: Any):
        super().__init__(stream)
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            # Not every terminal can show every name.
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        return super().write(printable(text))
