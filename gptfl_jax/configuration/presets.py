"""What config files share: folders of data, a switch, and FedAudio's settings."""

import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gptfl_jax.configuration.values import default_config

STAGES = (
    *("data", "model", "prompts", "generate", "train"),
    *("federated", "compare", "report"),
)
"""The sections of all stages."""

STARTS = {"scratch": "random", "gptfl": "synthetic"}
"""What `config.federated.init` is for the two starts that GPT-FL compares."""

FEDAUDIO_ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "cache": "data.options.cache",
    "epochs": "train.epochs",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "cohort_size": "federated.cohort_size",
}
"""Config-string names that all of FedAudio's data sets take."""

FEDAUDIO_METHODS = {
    "fedavg": {"algorithm": "fedavg"},
    "fedprox": {"algorithm": "fedprox"},
    "fedopt": {
        "algorithm": "fedopt",
        "client_learning_rate": 0.05,
        "algorithm_options": {"server_learning_rate": 1e-3},
    },
}
"""FedAudio's methods by name, each by what it changes in `config.federated`."""


def data_folder(name: str) -> str:
    """A folder in $GPTFL_DATA_DIR, or in data/ where that is not set."""
    return os.path.join(os.environ.get("GPTFL_DATA_DIR", "data"), name)


def take_flag(arg: str, name: str) -> tuple[str, bool]:
    """A config string without `<name>=True`, and whether it was there."""
    pairs = [pair.strip() for pair in arg.split(",")]
    others = [pair for pair in pairs if pair.lower() != f"{name}=true"]
    return ",".join(others), len(others) < len(pairs)


def fedaudio(source: str, *more: str) -> ConfigDict:
    """FedAudio's settings of its data sets (arXiv 2210.15707), for a config file.

    The classifier of two convolutions and a GRU, how it is trained, and the clients'
    steps. How many clients take part in a round, 5, and the 1,000 rounds are ours, as
    GPT-FL's for pictures.

    Args:
        source: the data set.
        more: sections beside those of stages 2 and 3.
    """
    chosen = {"data", "model", "train", "federated", "compare", "report", *more}
    config = default_config(*(section for section in STAGES if section in chosen))
    config.data.source = source
    config.data.folder = data_folder(source)
    config.data.options = {"cache": data_folder("features")}
    config.model.name = "audio_conv_rnn"

    config.train.epochs = 200
    config.train.batch_size = 32
    config.train.learning_rate = 1e-4

    federated = config.federated
    federated.rounds = 1000
    federated.cohort_size = 5
    federated.batch_size = 16
    federated.client_learning_rate = 0.1
    federated.checkpoint_every = 50
    return config


def set_folds(config: ConfigDict, arg: str, option: str, count: int) -> None:
    """Makes each fold the test set of a turn; where `arg` names one, it alone.

    Args:
        config: changed in place.
        arg: the config string, applied already; `test_fold=<n>` in it names the fold.
        option: the data set's option that holds out a fold.
        count: folds there are, numbered from 1.
    """
    named = "test_fold" in arg
    folds = (config.data.options[option],) if named else range(1, count + 1)
    config.compare.data = {f"fold{fold}": {option: fold} for fold in folds}


def from_each_start(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Methods to compare, each from random weights and from synthetic data's.

    Args:
        methods: fields of `config.federated` by name.

    Returns:
        the same for `config.compare.methods`, as `<name>-scratch` and `<name>-gptfl`.
    """
    return {
        f"{name}-{start}": {**fields, "init": init}
        for name, fields in methods.items()
        for start, init in STARTS.items()
    }
