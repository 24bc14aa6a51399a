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
        "fedavg: round 106 of 1,000, 00:06 gone, about 14:54 left\n"
        "fedavg: round 136 of 1,000, 00:36 gone, about 14:24 left\n"
        "fedavg: round 166 of 1,000, accuracy 0.812, 01:06 gone, about 13:54 left\n"
        "fedavg: round 196 of 1,000, accuracy 0.812, 01:36 gone, about 13:24 left\n",
    )


def test_the_first_step_is_left_out_of_the_pace(capsys, clock):
    """It has waited for the compiler: 25 seconds, and then one a round."""
    with progress.Progress(50, "round") as shown:
        for seconds in (25, 1, 1, 1, 1, 1, 1):
            clock[0] += seconds
            shown.update()
        assert shown.done == 7
    assert capsys.readouterr().err == "round 6 of 50, 00:30 gone, about 00:44 left\n"
    # Of batches, each is a step.
    with progress.Progress(6400, "images") as shown:
        for seconds in (25, 6):
            clock[0] += seconds
            shown.update(64)
    assert (
        capsys.readouterr().err == "images 128 of 6,400, 00:31 gone, about 09:48 left\n"
    )


def test_what_is_left_is_not_told_by_the_first_step(capsys, clock):
    with progress.Progress(20, "round") as shown:
        for seconds in (32, 5, 5):
            clock[0] += seconds
            shown.update()
    assert capsys.readouterr().err == (
        "round 1 of 20, 00:32 gone\nround 2 of 20, 00:37 gone, about 01:30 left\n"
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
    assert re.search(r"fedavg:  25%\|.*\| 1/4 \[\d\d:\d\d<\?, ", errors)
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


def test_a_sentence_ends_its_lines_between_words(capsys, monkeypatch):
    sentence, table = "one two-three four " * 3 + "end", "a  b" * 12
    command = f"next: {sentence}"
    text = "\n".join((sentence, table, command))
    progress.say(text)
    assert capsys.readouterr().out == f"{text}\n"  # to a file as it is
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    progress.say(text)
    assert capsys.readouterr().out == (
        "one two-three four one\ntwo-three four one two-three\nfour end\n"
        f"{table}\n{command}\n"
    )


def test_only_the_first_process_says_it_and_only_aloud(capsys, monkeypatch):
    progress.say("one")
    progress.say("two", quiet=True)
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    progress.say("three")
    assert capsys.readouterr().out == "one\n"


def test_one_of_a_thing_is_no_plural():
    words = [progress.counted(number, "round") for number in (0, 1, 2, 1000)]
    assert words == ["0 rounds", "1 round", "2 rounds", "1,000 rounds"]
