import re

import pytest

from gptfl_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """The time that the module reads, which does not pass by itself."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_outside_a_terminal_a_line_comes_now_and_then(capsys, clock):
    with progress.Progress(1000, "round", done=100, name="fedavg") as shown:
        for number in range(101, 201):
            clock[0] += 1
            if number == 150:
                shown.note("accuracy 0.812")
            shown.update()
    assert capsys.readouterr() == (
        "",
        "fedavg: round 130 of 1,000, 00:30 gone, about 14:30 left\n"
        "fedavg: round 160 of 1,000, accuracy 0.812, 01:00 gone, about 14:00 left\n"
        "fedavg: round 190 of 1,000, accuracy 0.812, 01:30 gone, about 13:30 left\n",
    )


def test_slow_steps_have_a_line_each_and_quick_runs_none(capsys, clock):
    with progress.Progress(2, "epoch") as shown:
        clock[0] += 29
        shown.update()
        clock[0] += 3600
        shown.update()
    assert capsys.readouterr().err == "epoch 2 of 2, 1:00:29 gone, about 00:00 left\n"


def test_on_a_terminal_there_is_a_bar(capsys, clock, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress(4, "round", name="fedavg") as shown:
        clock[0] += 60
        shown.update()
        shown.note("accuracy 0.812")
        shown.update()
    errors = capsys.readouterr().err
    assert re.search(r"fedavg:  50%\|.*\| 2/4 .*accuracy 0\.812", errors)
    assert "gone" not in errors


def test_only_the_first_process_shows_it(capsys, clock, monkeypatch):
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    with progress.Progress(4, "round") as shown:
        clock[0] += 60
        shown.update()
    assert capsys.readouterr().err == ""


def test_in_a_notebook_there_is_a_bar_too(capsys, clock, monkeypatch):
    monkeypatch.setattr(progress, "_IN_NOTEBOOK", True)
    with progress.Progress(4, "images") as shown:
        clock[0] += 60
        shown.update(2)
        assert shown.done == 2
    assert "| 2/4 " in capsys.readouterr().err


def test_only_the_first_process_says_it_and_only_aloud(capsys, monkeypatch):
    progress.say("one")
    progress.say("two", quiet=True)
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    progress.say("three")
    assert capsys.readouterr().out == "one\n"
