"""Ctrl-C and SIGTERM, seen between two steps.

Python raises KeyboardInterrupt wherever it happens to be. In a callback of JAX's C++
code that is lost, or ends in a segmentation fault. So a program is `watched`: a signal
raises nothing. Within a loop that is `deferred` it is noted, and the loop, which asks
at every step, saves and stops. Elsewhere, and at the second signal, the process ends at
once, which is safe: files appear whole, and a run goes on from what it has saved.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import jax

# A terminal, make and a job scheduler may each pass on the same Ctrl-C.
_ONE_PRESS_S = 0.5


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop and did; the message says what it has saved."""

    def __init__(self, saved: str = "the same command goes on from what is saved"):
        super().__init__(saved)


class _State:
    """What the process was told, and what it is doing."""

    def __init__(self):
        self.told = threading.Event()
        self.number = signal.SIGINT
        self.step = ""


_state = _State()


@contextlib.contextmanager
def watched(program: str) -> Iterator[None]:
    """Handle SIGINT and SIGTERM as this module says; those that are ignored stay so.

    Outside the main thread, which alone may set handlers, nothing is changed.
    """
    numbers = [
        number
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    _state.told.clear()
    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=_watch, args=(program, read), daemon=True).start()
    # The numbers of signals arrive there also while the main thread is in C++ code.
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False) if numbers else -1
    handlers = {number: signal.signal(number, _ignore) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if numbers:
            signal.set_wakeup_fd(before)
        os.close(write)


def _ignore(*_: object) -> None:
    """A handler that does nothing: `_watch` does it."""


def _watch(program: str, read: int) -> None:
    first = 0.0
    while data := os.read(read, 1):
        number = data[0]
        if number not in (signal.SIGINT, signal.SIGTERM):
            continue
        if _state.told.is_set() and time.monotonic() - first < _ONE_PRESS_S:
            continue
        if not _state.step or _state.told.is_set():
            _say(f"{program}: interrupted; the same command goes on from what is saved")
            os._exit(128 + number)
        first, _state.number = time.monotonic(), number
        _state.told.set()
        _say(f"{program}: stopping after this {_state.step}; Ctrl-C ends it at once")
    os.close(read)


def _say(text: str) -> None:
    # Not through sys.stderr, whose lock the main thread may hold. The line may follow a
    # progress bar.
    start = "\n" if sys.stderr.isatty() else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{text}\n".encode(errors="backslashreplace"))


@contextlib.contextmanager
def deferred(step: str) -> Iterator[None]:
    """Around a loop that asks at each step whether to stop.

    Args:
        step: what it does between two of these moments, as "round", for the user.

    Raises:
        Interrupted: at its end, where the loop did not come to ask any more.
    """
    outer, _state.step = _state.step, step
    try:
        yield
        check()
    finally:
        _state.step = outer


def requested() -> bool:
    """Whether to stop after this step."""
    return _state.told.is_set()


def should_save() -> bool:
    """Whether to save this step and stop.

    Raises:
        Interrupted: to stop, with others: each process hears of it at a step of its
            own, and they can only save together.
    """
    if requested() and jax.process_count() > 1:
        raise Interrupted
    return requested()


def check(saved: str = "") -> None:
    """Stops where that was asked for.

    Args:
        saved: what is saved, and how it goes on.

    Raises:
        Interrupted: it was.
    """
    if requested():
        raise Interrupted(saved) if saved else Interrupted


def sleep(seconds: int | float) -> None:
    """`time.sleep`, which ends when the run is to stop.

    Raises:
        Interrupted: it is.
    """
    _state.told.wait(seconds)
    check()


def exit_code() -> int:
    """What a process ends with that was interrupted: 130 by Ctrl-C, 143 by SIGTERM."""
    return 128 + (_state.number if requested() else signal.SIGINT)
