"""A federation that runs in a second: digits, few clients, a network of 4 channels."""

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from federated import experiment
from gptfl_jax import artifacts, configuration


def make_config(**federated) -> ConfigDict:
    config = configuration.default_config(
        "data", "model", "federated", "compare", "report"
    )
    config.model.options = {"width": 4, "depth": 1}
    fields = {"partition": "dirichlet", **federated}
    if fields["partition"] in ("dirichlet", "dirichlet_balanced", "quantity_skew"):
        fields["partition_options"] = {
            "min_examples": 5,
            **fields.get("partition_options", {}),
        }
    config.federated.update(
        {
            "num_clients": 12,
            "cohort_size": 3,
            "rounds": 6,
            "eval_every": 2,
            "checkpoint_every": 2,
            "batch_size": 16,
            **fields,
        }
    )
    configuration.validate(config)
    return config


@pytest.fixture(scope="session")
def setting() -> experiment.Setting:
    """Of `make_config()`, compiled once for all tests."""
    return experiment.prepare(make_config())


@pytest.fixture
def workdir(tmp_path: pathlib.Path, setting: experiment.Setting) -> pathlib.Path:
    """A workdir in which stage 2 has left its weights."""
    variables = setting.learner.init(jax.random.key(5))
    with artifacts.Checkpoints(tmp_path / "pretrain" / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": variables})
    return tmp_path


def lines_without_seconds(folder: pathlib.Path) -> list[str]:
    """The bytes of each line up to the time it took, which comes last."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert all(', "seconds": ' in line for line in lines)
    return [line.rpartition(', "seconds": ')[0] for line in lines]


def weights(folder: pathlib.Path, setting: experiment.Setting) -> np.ndarray:
    template = {"variables": setting.learner.init(jax.random.key(0))}
    restored = artifacts.restore_checkpoint(folder / "checkpoints", template)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(restored)])
