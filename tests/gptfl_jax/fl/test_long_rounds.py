"""Rounds that take minutes, and many of them, on a machine with other work."""

import contextlib
import json
import pathlib
import socket
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("long_rounds.py")

pytestmark = pytest.mark.long


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


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


def test_a_device_may_work_three_minutes_longer_than_the_other():
    """XLA ends a process in which one waits a minute in a collective."""
    result = result_of(start("uneven", 190))
    assert result["clients"] == 2
    assert result["seconds"] > 120


def test_three_hundred_rounds_with_large_tests_beside_busy_processes():
    with busy_processes(4):
        result = result_of(start("many", 300))
    assert result["counted"] == [10_000] * 300


def test_three_hundred_rounds_of_two_processes_of_two_devices():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with busy_processes(4):
        runs = [start("many", 300, address, 2, number) for number in range(2)]
        first, second = map(result_of, runs)
    assert first["counted"] == [10_000] * 300
    assert first == second
