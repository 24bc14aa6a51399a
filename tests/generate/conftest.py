"""Generators so small that a program can be run and killed many times."""

import pathlib

import pytest
import small_audioldm

from generate import samples
from gptfl_jax.generators.sounds.audioldm import AudioLDM
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


@pytest.fixture(scope="session", autouse=True)
def uncounted():
    """Operations are not counted, which takes a second; started programs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "operations", lambda maker: 0.0)
        yield


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


SOUNDS_CONFIG = """
from gptfl_jax import configuration

def get_config(arg=""):
    config = configuration.default_config("data", "prompts", "generate")
    config.data.source = "esc50"
    config.prompts.method = "multi_domain"
    config.prompts.classes = ("dog", "sea_waves")
    config.generate.model = {folder!r}
    config.generate.samples_per_class = "8"
    config.generate.num_steps = 2
    config.generate.guidance_scale = 2.5
    config.generate.duration_s = 0.05
    config.generate.batch_size = 8
    config.generate.preview_per_class = 2
    names = {{"method": "prompts.method", "samples": "generate.samples_per_class"}}
    return configuration.apply_arguments(config, arg, names)
"""


@pytest.fixture(scope="session")
def tiny_sounds(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder of a tiny AudioLDM with random weights and a card."""
    folder = tmp_path_factory.mktemp("sounds") / "tiny"
    tokenizer = small_audioldm.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    AudioLDM(
        small_audioldm.networks(),
        small_audioldm.parameters(),
        tokenizer,
        small_audioldm.SOLVER,
    ).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n# A card\n")
    return folder


@pytest.fixture(scope="session")
def sounds_config_file(
    tiny_sounds: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """A config of two classes, eight clips each, in four domains."""
    path = tmp_path_factory.mktemp("config") / "sounds.py"
    path.write_text(SOUNDS_CONFIG.format(folder=str(tiny_sounds)))
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
