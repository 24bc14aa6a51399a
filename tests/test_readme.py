"""What the README tells people to type works."""

import importlib.util
import re
import shlex
import tomllib

import pytest

from federated import compare
from gptfl_jax import configuration, launch


@pytest.fixture(scope="module")
def readme(repository) -> str:
    return (repository / "README.md").read_text()


def python_blocks(readme: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)


def test_commands(readme, repository, monkeypatch):
    monkeypatch.chdir(repository)
    text = readme.replace("\\\n", " ")
    commands = re.findall(r"^python -m .*--config=.*$", text, flags=re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        assert importlib.util.find_spec(module) is not None
        arguments = dict(argument[2:].split("=", 1) for argument in arguments)
        config = launch.read_config(arguments["config"])
        for name, value in arguments.items():
            if name.startswith("config."):
                configuration.set_text(config, name.removeprefix("config."), value)
        configuration.validate(config)


def test_console_scripts_are_named(readme, repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert len(project["scripts"]) == 13
    for name in project["scripts"]:
        assert f"`{name}`" in readme


def test_config_of_ones_own_pictures(readme, repository):
    (block,) = [b for b in python_blocks(readme) if "def get_config" in b]
    assert block in (repository / "docs/how-to/own-data.md").read_text()
    names = {}
    exec(block, names)
    config = names["get_config"]()
    configuration.validate(config)
    assert config.data.source == "image_folder"
    starts = [each.federated.init for each in compare.runs(config)]
    assert starts == 3 * ["synthetic"] + 3 * ["random"]


@pytest.mark.long
def test_a_notebook(readme, capsys):
    (block,) = [b for b in python_blocks(readme) if "gf.simulate(" in b]
    names = {}
    exec(block, names)
    fedavg, fedprox = names["runs"]
    assert (fedavg.name, fedprox.name) == ("FedAvg", "FedProx")
    for run in names["runs"]:
        assert run.metrics.accuracy[20] > 0.7  # above 0.8 as measured, chance being 0.1
    assert fedavg.metrics.loss[20] != fedprox.metrics.loss[20]
    assert "accuracy" in capsys.readouterr().out


def test_pages_begin_with_the_same_lines(readme, repository):
    (block,) = [b for b in python_blocks(readme) if "gf.simulate(" in b]
    for page in ("docs/index.md", "docs/guide/quick-start.md"):
        assert python_blocks((repository / page).read_text()) == [block]


def test_federated_rounds_as_a_library(readme, capsys):
    (block,) = [b for b in python_blocks(readme) if "algorithm.round(" in b]
    exec(block, {})
    accuracy = re.search(r"accuracy=([\d.]+)", capsys.readouterr().out)
    # Ten rounds from scratch, chance being 0.1.
    assert float(accuracy[1]) > 0.25


def test_speech_as_a_library(readme):
    (block,) = [b for b in python_blocks(readme) if "TextToSpeech" in b]
    names = {}
    exec(block, names)
    # Two words of half a second or so, in the voices' 16 kHz.
    assert names["waves"].shape[0] == 2
    assert all(2_000 < length < 16_000 for length in names["lengths"])
