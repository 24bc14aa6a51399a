"""Generators so small that a program can be run and killed many times."""

import pathlib

import pytest

from tests.small_generators import save_speech, save_stable_diffusion

CONFIG = """
from gptfl_jax import configuration

def get_config(arg=""):
    config = configuration.default_config("data", "prompts", "generate")
    config.prompts.classes = ("bird", "hot dog", "cat/dog")
    config.generate.model = {model!r}
    config.generate.samples_per_class = "6"
    config.generate.num_steps = 2
    config.generate.guidance_choices = (1.0, 3.0, 7.5)
    config.generate.batch_size = 4
    config.generate.preview_per_class = 2
    return configuration.apply_arguments(config, arg, {{}})
"""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder of a tiny Stable Diffusion with random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_stable_diffusion(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def config_file(
    tiny_model: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A config of three classes with awkward names, six images each."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(model=str(tiny_model)))
    return path


SPEECH_CONFIG = """
from gptfl_jax import configuration

def get_config(arg=""):
    config = configuration.default_config("data", "prompts", "generate")
    config.prompts.method = "multi_speaker"
    config.prompts.classes = ("bird", "hot dog", "no")
    config.prompts.template = "{{name}}"
    config.generate.model = {folder!r} + "/model"
    config.generate.vocoder = {folder!r} + "/vocoder"
    config.generate.speaker_vectors = {folder!r} + "/speakers.zip"
    config.generate.stop_threshold = 0.335
    config.generate.samples_per_class = "6"
    config.generate.batch_size = 4
    config.generate.preview_per_class = 2
    return configuration.apply_arguments(config, arg, {{}})
"""


@pytest.fixture(scope="session")
def tiny_speech(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder of a tiny SpeechT5, a vocoder and three speakers."""
    folder = tmp_path_factory.mktemp("speech") / "tiny"
    save_speech(folder)
    return folder


@pytest.fixture(scope="session")
def speech_config_file(
    tiny_speech: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A config of three classes, six clips each, of three speakers."""
    path = tmp_path_factory.mktemp("config") / "speech.py"
    path.write_text(SPEECH_CONFIG.format(folder=str(tiny_speech)))
    return path
