"""docs/extending.md: its examples are short, and run as they stand."""

import json
import re

import numpy as np
import pytest

from federated import experiment, simulate
from generate import prompts
from gptfl_jax import choices, configuration, families
from gptfl_jax.errors import ConfigError

from .federated.conftest import make_config


@pytest.fixture(scope="module")
def files(repository, tmp_path_factory) -> dict[str, str]:
    """The path of each example, by its name."""
    page = (repository / "docs/extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", page, flags=re.DOTALL)
    folder = tmp_path_factory.mktemp("own")
    for name, block in blocks:
        assert len(block.strip().splitlines()) < 25, name
        (folder / f"{name}.py").write_text(block)
    return {name: str(folder / f"{name}.py") for name, _ in blocks}


def test_all_examples_in_one_run(files, tmp_path):
    config = make_config(
        rounds=2,
        algorithm=files["bounded_server"],
        algorithm_options={"most": 0.5},
        aggregation=files["sign_mean"],
        sampling=files["in_turn"],
        partition=files["by_class"],
        partition_options={"stray": 0.25},
        init=files["halved"],
    )
    config.model.name, config.model.options = files["small_net"], {"width": 8}
    configuration.validate(config)
    last = simulate.simulate(config, tmp_path)
    assert last["step"] == 2
    # The sign of each of 64 x 8 + 8 + 8 x 10 + 10 weights, 0.01 each, unless clipped.
    assert 0 < last["mean_update_norm"] <= 0.01 * np.sqrt(610) + 1e-6
    assert (tmp_path / "federated" / "bounded_server-halved-s0").is_dir()


def test_what_they_do(files):
    partition = choices.find(families.PARTITION, files["by_class"])
    labels = np.repeat(np.arange(3), 20)
    owner = partition(labels, 7, 0)
    assert (owner % 3 == labels).all() and set(owner) == set(range(7))
    strays = partition(labels, 7, 0, stray=1.0)
    assert (strays % 3 != labels).any()
    draw = choices.bind(
        families.SAMPLING, files["in_turn"], {}, num_clients=5, cohort_size=3
    )
    assert draw(None, 1).tolist() == [3, 4, 0]


def test_the_data_set_is_dealt_to_its_own_clients(files, tmp_path):
    config = make_config(
        partition="natural", rounds=30, cohort_size=10, eval_every=30, local_epochs=2
    )
    config.data.source = files["two_moons"]
    config.data.options = {"examples": 400}
    config.model.name = files["small_net"]
    config.model.options = {}
    configuration.validate(config)
    assert simulate.simulate(config, tmp_path)["accuracy"] > 0.8
    partition = json.loads(
        (tmp_path / "federated" / "fedavg-random-s0" / "partition.json").read_text()
    )
    assert partition["class_names"] == ["one", "two"]
    assert len(partition["sizes"]) == 20 and sum(partition["sizes"]) == 300


def test_prompts(files, tmp_path):
    config = configuration.default_config("data", "prompts")
    config.prompts.method = files["captions"]
    config.prompts.method_options = {"views": 2}
    prompts.run(config, tmp_path)
    made = json.loads((tmp_path / "prompts.json").read_text())
    assert len(made["prompts"]) == 10
    assert made["prompts"]["3"] == ["view 1 of three", "view 2 of three"]
    assert all(len(sentences) == 2 for sentences in made["prompts"].values())
    config.prompts.method_options = {"view": 2}
    with pytest.raises(ConfigError, match="no such option; did you mean views"):
        prompts.run(config, tmp_path)


def test_their_options_are_checked(files):
    with pytest.raises(ConfigError, match=r"options\.most = -1: takes a number > 0"):
        make_config(algorithm=files["bounded_server"], algorithm_options={"most": -1})
    with pytest.raises(ConfigError, match="no such option; did you mean most"):
        make_config(algorithm=files["bounded_server"], algorithm_options={"mots": 1})
    experiment.check(make_config(algorithm=files["bounded_server"]).federated)
