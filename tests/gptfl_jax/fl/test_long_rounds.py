"""Rounds that take minutes, and many of them, on a machine with other work."""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

PROGRAM = pathlib.Path(__file__).with_name("long_rounds.py")

pytestmark = pytest.mark.long


@contextlib.contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen]:
    """A run, which does not outlive the test."""
    run = subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield run
    finally:
        run.kill()
        run.wait()
        run.stdout.close()


def result_of(run: subprocess.Popen) -> dict:
    output = run.communicate(timeout=1200)[0]
    assert run.returncode == 0
    return json.loads(output.splitlines()[-1])


@contextlib.contextmanager
def busy_processes(count: int):
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_uneven_devices_and_many_rounds_beside_busy_processes():
    """A device takes three minutes longer than the other; 300 rounds with large tests.

    XLA ends a process in which a device waits a minute for another in a collective. All
    run at the same time: the first for the most part waits.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        uneven, alone, *both = (
            stack.enter_context(started(*arguments))
            for arguments in (
                ("uneven", 190),
                ("many", 300),
                *(("many", 300, address, 2, number) for number in range(2)),
            )
        )
        with busy_processes(4):
            first, second = map(result_of, both)
            counted = result_of(alone)["counted"]
        slow = result_of(uneven)
    assert counted == first["counted"] == [10_000] * 300
    # Of two processes of two devices each.
    assert first == second
    assert slow["clients"] == 2
    assert slow["seconds"] > 180
