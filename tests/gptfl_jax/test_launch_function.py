"""Programs without a config: flags are what a function takes."""

import pytest

from gptfl_jax import launch
from gptfl_jax.errors import UserError

CALLS = []


def run(name: str, output: str = "here", step: str = "") -> None:
    """Does it.

    Args:
        name: of what is done, over
            two lines.
        output: where it goes.
        step: which.
    """
    if step == "fails":
        raise UserError("step\x1b is a failure: take another")
    CALLS.append((name, output, step))


def ends(capsys, *argv):
    with pytest.raises(SystemExit) as left:
        launch.launch_function(run, argv)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.partition(": ")[2]


def test_flags_are_parameters(capsys):
    CALLS.clear()
    launch.launch_function(run, ["--name=a", "--step", "2"])
    launch.launch_function(run, ["--name=b", "--output=there"])
    assert CALLS == [("a", "here", "2"), ("b", "there", "")]


def test_what_is_wrong_is_a_line(capsys):
    assert ends(capsys) == "--name is missing; see --help"
    assert ends(capsys, "--name=") == "--name is missing; see --help"
    assert ends(capsys, "--nam=a") == "--nam: no such flag; did you mean --name?"
    assert ends(capsys, "--name=a", "b") == "unexpected argument 'b'; see --help"
    assert "takes a name in UTF-8" in ends(capsys, "--name=\udce9")
    failed = ends(capsys, "--name=a", "--step=fails")
    assert failed == r"step\x1b is a failure: take another"


def test_help_is_the_docstrings(capsys):
    launch.launch_function(run, ["--help"])
    text = capsys.readouterr().out
    assert text.startswith("Programs without a config")
    assert "--name\n      of what is done, over two lines.\n" in text
    assert "--output=here\n      where it goes.\n" in text


def run_more(*files: str, twice: bool = False, count: int = 3) -> None:
    """Does it to files.

    Args:
        files: what it is done to.
        twice: whether again.
        count: how often.
    """
    CALLS.append((files, twice, count))


def test_arguments_without_a_flag_flags_and_whole_numbers(capsys):
    CALLS.clear()
    launch.launch_function(run_more, ["a", "--twice", "b", "--count=5", "--", "--c"])
    launch.launch_function(run_more, ["--notwice"])
    assert CALLS == [(("a", "b", "--c"), True, 5), ((), False, 3)]
    with pytest.raises(SystemExit):
        launch.launch_function(run_more, ["--count=many"])
    assert "flag --count=many" in capsys.readouterr().err
    launch.launch_function(run_more, ["--help"])
    text = capsys.readouterr().out
    assert "Arguments:\n  files ...\n      what it is done to.\n" in text
    assert "--twice=False\n      whether again.\n" in text
