"""Ctrl-C and SIGTERM, sent to programs of their own."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from gptfl_jax import interruption

PROGRAM = """
import sys, time
from gptfl_jax import interruption

with interruption.watched("echo"):
    if sys.argv[1] == "outside":
        print("ready", flush=True)
        time.sleep(60)
    try:
        with interruption.deferred("step"):
            print("ready", flush=True)
            for _ in range(6000):
                time.sleep(0.01)
                if sys.argv[1] == "asks":
                    interruption.check("saved after step 3")
    except KeyboardInterrupt as error:
        print(type(error).__name__, error, flush=True)
        raise SystemExit(interruption.exit_code())
"""


def send(what: str, *signals: signal.Signals, ignored: bool = False):
    """Starts the program, sends signals 0.7 s apart; gives (code, output, errors)."""
    code = PROGRAM
    if ignored:
        code = f"import signal; signal.signal(2, signal.SIG_IGN)\n{PROGRAM}"
    else:
        code = f"import signal; signal.signal(2, signal.default_int_handler)\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        for index, number in enumerate(signals):
            time.sleep(0.7 if index else 0)
            process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, output, errors


STOPPING = "echo: stopping after this step; Ctrl-C ends it at once\n"
ENDED = "echo: interrupted; the same command goes on from what is saved\n"


@pytest.mark.parametrize(
    "what, signals, expected",
    [
        (
            "asks",
            [signal.SIGINT],
            (130, "Interrupted saved after step 3\n", STOPPING),
        ),
        ("asks", [signal.SIGTERM], (143, "Interrupted saved after step 3\n", STOPPING)),
        ("never asks", [signal.SIGINT, signal.SIGINT], (130, "", STOPPING + ENDED)),
        ("outside", [signal.SIGINT], (130, "", ENDED)),
        ("outside", [signal.SIGTERM], (143, "", ENDED)),
    ],
)
def test_a_signal_ends_a_program(what, signals, expected):
    assert send(what, *signals) == expected


def test_a_signal_that_is_ignored_stays_so():
    code, output, errors = send("asks", signal.SIGINT, signal.SIGTERM, ignored=True)
    assert (code, output) == (143, "Interrupted saved after step 3\n")
    assert errors == STOPPING


def test_a_signal_is_heard_once_where_it_comes_twice():
    # As by a terminal and by make.
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "never asks"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.03)
        time.sleep(0.3)
        assert process.poll() is None
    finally:
        process.kill()
        assert process.communicate()[1] == STOPPING


def test_a_loop_that_does_not_ask_any_more_stops_at_its_end(told):
    with pytest.raises(interruption.Interrupted, match="goes on from what is saved"):
        with interruption.deferred("step"):
            told.set()
    with pytest.raises(ZeroDivisionError), interruption.deferred("step"):
        raise ZeroDivisionError


def test_a_wait_ends_when_the_run_is_to_stop(told):
    started = time.monotonic()
    timer = threading.Timer(0.1, told.set)
    timer.start()
    with pytest.raises(interruption.Interrupted):
        interruption.sleep(60)
    assert time.monotonic() - started < 10
    told.clear()
    interruption.sleep(0)
    interruption.check()


def test_of_several_processes_none_saves_alone(told, monkeypatch):
    assert not interruption.should_save()
    told.set()
    assert interruption.should_save()
    monkeypatch.setattr(interruption.jax, "process_count", lambda: 2)
    with pytest.raises(interruption.Interrupted):
        interruption.should_save()


def test_handlers_are_put_back(told):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interruption.watched("test"):
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(interruption.Interrupted):
        with interruption.watched("test"), interruption.deferred("step"):
            signal.raise_signal(signal.SIGTERM)
            assert told.wait(10)
