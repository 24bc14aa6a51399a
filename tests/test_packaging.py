"""The wheel: what it holds, and its console scripts, run away from the checkout."""

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile

import pytest

PACKAGES = ("gptfl_jax", "generate", "train", "federated")

# Run in the wheel's own environment: loads every console script's function.
LOAD_SCRIPTS = """
from importlib import metadata
import sys
for script in metadata.distribution("gptfl-jax").entry_points:
    function = script.load()
    assert callable(function)
    file = sys.modules[function.__module__].__file__
    print(script.name, script.value, file)
"""


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    subprocess.run(
        [*command, "--outdir", str(folder), str(repository)],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> pathlib.Path:
    """The `bin` folder of an environment with the wheel, and our dependencies below."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    # The packages of this environment, but not its .pth files, and so not the checkout.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def run(command, folder: pathlib.Path) -> subprocess.CompletedProcess:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in os.environ if name not in hidden}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_wheel_holds_the_packages_their_data_and_the_configs(repository, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "--", *PACKAGES, "configs"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        inside = f"gptfl_jax/{name}" if name.startswith("configs/") else name
        if (repository / name).exists():
            assert inside in names
    tops = {name.partition("/")[0] for name in names}
    (information,) = tops - set(PACKAGES)
    assert information.endswith(".dist-info")
    assert f"{information}/licenses/LICENSE" in names


def test_the_model_card_names_every_font_family(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    fonts = project["optional-dependencies"]["fonts"]
    families = {
        name.removeprefix("fontpkg-") for name in fonts if name.startswith("fontpkg-")
    }
    assert len(families) >= 60
    card = (repository / "gptfl_jax/assets/glyphs/README.md").read_text()
    under_ofl = re.search(r"Families under the OFL: (.*)\.\n", card)[1].split(", ")
    named = {name.lower().replace(" ", "-") for name in under_ofl}
    assert families == named | {"permanent-marker", "satisfy", "yellowtail"}
    assert "except Permanent Marker, Satisfy and Yellowtail, which" in card


def test_every_console_script_loads_from_the_wheel(installed, tmp_path):
    result = run([installed / "python", "-c", LOAD_SCRIPTS], tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert {name: value for name, value, _ in lines} == {
        "gptfl-generate-prompts": "generate.prompts:main",
        "gptfl-generate-images": "generate.images:main",
        "gptfl-generate-speech": "generate.speech:main",
        "gptfl-generate-sounds": "generate.sounds:main",
        "gptfl-train": "train.downstream:main",
        "gptfl-train-generator": "train.generator:main",
        "gptfl-weights": "train.weights:main",
        "gptfl-federated": "federated.simulate:main",
        "gptfl-compare": "federated.compare:main",
        "gptfl-sweep": "federated.sweep:main",
        "gptfl-report": "federated.report:main",
        "gptfl-predict": "federated.predict:main",
        "gptfl-export": "federated.export:main",
    }
    for name, _, file in lines:
        assert file.startswith(str(installed.parent)), file
        assert os.access(installed / name, os.X_OK)


def test_a_console_script_runs_in_another_folder(installed, tmp_path):
    script = installed / "gptfl-generate-prompts"
    arguments = ("--config=digits:seed=3", "--workdir=runs/digits")
    result = run([script, *arguments], tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(
        "generate.prompts: digits:seed=3 -> runs/digits, on "
    )
    prompts = json.loads((tmp_path / "runs/digits/prompts.json").read_text())
    assert prompts

    result = run([script, "--config=nothing", "--workdir=w"], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("generate.prompts: --config=nothing: no such file")
    assert "digits" in result.stderr


def test_help_of_an_installed_program(installed, tmp_path):
    result = run([installed / "gptfl-federated", "--help"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "python -m federated.simulate --config=" in result.stdout
    assert "\n  federated.client_learning_rate = 0.1\n" in result.stdout
