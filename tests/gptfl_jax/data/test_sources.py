import pytest

from gptfl_jax import configuration
from gptfl_jax.data import sources
from gptfl_jax.errors import UserError


def test_unknown_sources_and_options_are_refused():
    with pytest.raises(UserError, match="takes one of cifar10, cifar100, crema_d"):
        sources.load("mnist")
    with pytest.raises(UserError, match="takes one of"):
        sources.load("load_synthetic", "folder")
    with pytest.raises(
        UserError, match="options.runs: .* takes no such option; it takes test_blocks, "
    ):
        sources.load("sklearn_digits", runs=2)
    with pytest.raises(UserError, match="from 1 to 13"):
        sources.load("sklearn_digits", test_blocks=14)
    with pytest.raises(UserError, match=r"blocks = 15: takes .* from 2 to 14"):
        sources.load("sklearn_digits", blocks=15)
    with pytest.raises(UserError, match="data.folder is empty"):
        sources.load("cifar10")


OWN = """
from gptfl_jax.data.datasets import Dataset, Source
import numpy as np

def birds(folder, *, rows: int = 2) -> Source:
    part = Dataset(np.zeros((rows, 4, 4, 1), np.uint8), np.arange(rows, dtype=np.int32),
                   ("crow", "wren"))
    return Source(part, part, (0.5,), (0.5,))
"""


def test_a_source_of_ones_own_is_a_file(tmp_path):
    file = tmp_path / "my_birds.py"
    file.write_text(OWN)
    source = sources.load(str(file), "here", image_size=2, channels=3)
    assert source.train.inputs.shape == (2, 2, 2, 3) and source.std == (0.5, 0.5, 0.5)
    assert sources.class_names(str(file), "here") == ("crow", "wren")
    with pytest.raises(UserError, match=r"options\.rows = 'two': takes a whole number"):
        sources.load(str(file), "here", rows="two")
    with pytest.raises(UserError, match="data.folder is empty"):
        sources.load(str(file))
    file = tmp_path / "nothing.py"
    file.write_text("BIRDS = 2")
    with pytest.raises(UserError, match=r"a function like .*\(.*folder.*holds none"):
        sources.load(str(file), "here")


def test_options_are_checked_with_the_config_and_names_alone_may_stand(tmp_path):
    config = configuration.default_config("data")
    config.data.options = {"test_block": 2}
    with pytest.raises(UserError, match=r"data\.options\.test_block: .*test_blocks\?"):
        configuration.validate(config)
    # Prompts need the class names of EuroSAT, of which no source reads the pictures.
    config.data.source, config.data.options = "eurosat", {}
    configuration.validate(config)
    with pytest.raises(UserError, match="data.source = 'eurosat': takes one of"):
        sources.load("eurosat")
    config.data.source = "eurosad"
    with pytest.raises(UserError, match="data.source = 'eurosad': takes one of"):
        configuration.validate(config)
