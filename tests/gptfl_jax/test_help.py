"""What `--help` says, of a program that reads two sections of a config."""

import importlib
import re
import shlex
import tomllib

import pytest

from federated import compare, experiment, export, predict
from gptfl_jax import configuration, launch
from gptfl_jax.errors import UserError
from gptfl_jax.launch import command_line, help
from tests.own_config import CONFIG

SECTIONS = ("data", "federated")

ABOUT = """Say what was asked.

    python -m echo --config=configs/own.py --workdir=runs/own

It does nothing else, and this is a paragraph that goes on for longer than a line of
help may be, with a list:

    one    of a kind
    two    of another

More is said here.
"""


def run(config, workdir):
    raise AssertionError("help runs nothing")


def _help(capsys, *arguments):
    launch.launch(run, SECTIONS, arguments)
    return capsys.readouterr().out


def test_help_says_what_it_does_and_which_fields_are_used_most():
    output = help.text(ABOUT, "echo", SECTIONS)
    assert output.startswith(
        "Say what was asked.\n\n"
        "    python -m echo --config=configs/own.py --workdir=runs/own\n\n"
        "It does nothing else, and this is a paragraph that goes on for longer than a\n"
        "line of help may be, with a list:\n\n"
        "    one    of a kind\n    two    of another\n\nFlags:\n"
    )
    assert "\n  --dry_run\n" in output and "--cpu_devices" not in output
    text = _entry(output, "federated.client_learning_rate = 0.1")
    assert text == configuration.SCHEMA["federated"]["client_learning_rate"].help
    for dotted, field in configuration.fields(*SECTIONS):
        assert (f"\n  {dotted} = " in output) == field.common
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 90
    assert "--help=federated, or any other word" in " ".join(output.split())


def _entry(output: str, heading: str) -> str:
    """The text that stands below a line of help."""
    found = re.search(rf"^  {re.escape(heading)}\n((?: {{6}}.*\n?)+)", output, re.M)
    return " ".join(found.group(1).split())


def test_all_help_there_is():
    output = help.text(ABOUT, "echo", SECTIONS, which="all")
    assert "More is said here." in output and "--cpu_devices\n" in output
    rate = configuration.SCHEMA["federated"]["client_learning_rate"]
    text = _entry(output, "federated.client_learning_rate = 0.1")
    assert text == f"{rate.help}. Takes {rate.takes}."
    for dotted, _ in configuration.fields(*SECTIONS):
        assert f"\n  {dotted} = " in output
    assert "train.epochs" not in output
    assert max(map(len, output.splitlines())) <= 100


def test_help_on_a_word():
    every = help.text("", "echo", SECTIONS, which="federated.algorithm")
    assert "\n  federated.algorithm_options.mu = 0.01\n" in every
    assert "Options of federated.algorithm = 'fedprox'" in every
    assert "rounds" not in every.replace("rounds of", "")
    # An option alone, of all choices that have it.
    mu = help.text("", "echo", SECTIONS, which="mu")
    assert "Options of federated.algorithm = 'fedprox'" in mu
    assert "Options of federated.algorithm = 'moon'" in mu
    assert "federated.algorithm_options.mu = " in mu and "fedavgm'" not in mu
    dotted = "federated.algorithm_options.mu"
    assert help.text("", "echo", SECTIONS, which=dotted) == mu
    takes_none = help.text("", "echo", SECTIONS, dry_run=False)
    assert "--workdir\n" in takes_none and "--dry_run\n" not in takes_none
    with pytest.raises(UserError, match="--help=zebra: no field of echo has this in"):
        help.text("", "echo", SECTIONS, which="zebra")


def test_help_beside_a_config_shows_its_values(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    config = f"--config={tmp_path}/mine.py:rate=0.25"
    arguments = ("--help", config, "--config.federated.run=mine")
    output = _help(capsys, *arguments)
    assert output.startswith("What `--help` says, of a program that reads")
    assert "those that this config sets, with the values of" in " ".join(output.split())
    rate = "client_learning_rate = 0.25"
    for line in ("rounds = 7", rate, "run = 'mine'", "cohort_size = 10"):
        assert f"\n  federated.{line}\n" in output
    assert "One of cifar10, cifar100, crema_d," in _entry(
        output, "data.source = 'sklearn_digits'"
    )
    # A field that few set, which this command does.
    assert "federated.clip_norm" not in output
    output = _help(capsys, *arguments, "--config.federated.clip_norm=3.0")
    assert "\n  federated.clip_norm = 3.0\n" in output


def test_help_shows_the_options_of_what_is_chosen(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import flax.linen as nn\n"
        "class Model(nn.Module):\n"
        '    """One layer.\n\n    Attributes:\n      taps: how many it has.\n    """\n'
        "    num_classes: int\n"
        "    taps: int = 3\n"
    )
    config = configuration.default_config("data", "model")
    config.model.name = str(mine)
    config.model.options = {"taps": 5}
    for which in ("model.options", "all"):
        text = help.text("", "train.downstream", ("data", "model"), config, which)
        assert (
            f"\nOptions of model.name = '{mine}'\n  model.options.taps = 5\n"
            "      how many it has. Takes a whole number." in text
        )
        for name in ("convnet", "audio_cnn", "resnet"):
            assert f"\nOptions of model.name = '{name}'\n" in text
        assert text.count("\n  model.options.norm = ") >= 2
    for argument, which in (
        *(("--help", "common"), ("-h", "common"), ("--help=", "common")),
        *(("--help=all", "all"), ("--helpfull", "all"), ("-x", "")),
        ("--help=config.federated.rounds", "federated.rounds"),
    ):
        assert help.asked(["--config=a", argument]) == which


def test_what_help_shows_as_an_example_is_accepted(repository, monkeypatch):
    """Of every program the commands of its docstring, its own among them."""
    monkeypatch.chdir(repository)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a sweep starts no processes
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for script in project["scripts"].values():
        program = script.partition(":")[0]
        about = importlib.import_module(program).__doc__
        assert f"\n    python -m {program} " in help._beginning(about)
        about = about.replace("\\\n", "")
        for command in re.findall(r"^    python -m (.*)", about, re.M):
            _accept(*shlex.split(command), monkeypatch=monkeypatch)


def _accept(program: str, *arguments: str, monkeypatch) -> None:
    """Reads a command line as the program does, up to its work."""

    def launched(run, sections, argv=arguments, **_):
        command_line.configured(command_line.read_command(argv), sections)

    def launched_function(run, argv=arguments):
        command_line.read_arguments(run, argv)

    module = importlib.import_module(program)
    monkeypatch.setattr(module, "launch", launched, raising=False)
    monkeypatch.setattr(module, "launch_function", launched_function, raising=False)
    monkeypatch.setattr("sys.argv", [program, *arguments])
    module.main()


@pytest.mark.parametrize("program", (predict, export))
def test_the_run_of_an_example_is_one_that_compare_writes(program):
    name, run = re.search(r"--workdir=runs/(\w+) --run=(\S+)", program.__doc__).groups()
    configs = compare.runs(launch.read_config(name))
    assert run in [experiment.run_name(each) for each in configs]
