"""Fields of earlier versions: what they are called now, in configs and in records.

A field that belonged to one algorithm, aggregation, partition or sampler is an option
of that one, by the name in its signature.
"""

import copy
import inspect
from collections.abc import Collection
from typing import Any, NamedTuple

from gptfl_jax import choices, families
from gptfl_jax.errors import ConfigError, unknown


class Renamed(NamedTuple):
    """Where a field of `config.federated` went."""

    family: choices.Family
    of: tuple[str, ...]
    """The choices whose option it is; of others it meant nothing."""
    option: str
    unless: Any = None
    """The value that stood for the default."""


_RATED = ("fedopt", "fedavgm", "scaffold")
_SKEWED = ("dirichlet", "dirichlet_balanced", "quantity_skew")
_ALGORITHM, _AGGREGATION = families.ALGORITHM, families.AGGREGATION
_PARTITION, _SAMPLING = families.PARTITION, families.SAMPLING
RENAMED = {
    "prox_mu": Renamed(_ALGORITHM, ("fedprox",), "mu"),
    "fednova_mu": Renamed(_ALGORITHM, ("fednova",), "mu"),
    "feddyn_alpha": Renamed(_ALGORITHM, ("feddyn",), "alpha"),
    "moon_mu": Renamed(_ALGORITHM, ("moon",), "mu"),
    "moon_temperature": Renamed(_ALGORITHM, ("moon",), "temperature"),
    "scaffold_control": Renamed(_ALGORITHM, ("scaffold",), "control"),
    "server_momentum": Renamed(_ALGORITHM, ("fedavgm",), "beta"),
    "server_optimizer": Renamed(_ALGORITHM, ("fedopt",), "server_optimizer"),
    "server_learning_rate": Renamed(_ALGORITHM, _RATED, "server_learning_rate", 0),
    "server_options": Renamed(_ALGORITHM, ("fedopt",), "server_options", {}),
    "update_clip_norm": Renamed(_AGGREGATION, ("clipped_mean",), "max_norm"),
    "noise_multiplier": Renamed(_AGGREGATION, ("clipped_mean",), "noise_multiplier"),
    "trimmed_fraction": Renamed(_AGGREGATION, ("trimmed_mean",), "fraction"),
    "alpha": Renamed(_PARTITION, _SKEWED, "alpha"),
    "min_examples": Renamed(_PARTITION, _SKEWED, "min_examples"),
    "shards_per_client": Renamed(_PARTITION, ("shards",), "shards_per_client"),
    "availability_file": Renamed(_SAMPLING, ("availability",), "file"),
}
# What other libraries call them: too far from ours to be found by their letters.
_ELSEWHERE = {
    "federated.lr": "federated.client_learning_rate",
    "federated.learning_rate": "federated.client_learning_rate",
    "federated.optimizer": "federated.client_optimizer",
    "federated.epochs": "federated.local_epochs",
    "federated.num_rounds": "federated.rounds",
    "federated.clients_per_round": "federated.cohort_size",
    "federated.fraction_fit": "federated.cohort_size",
    "federated.min_fit_clients": "federated.cohort_size",
    "train.lr": "train.learning_rate",
    "generate.num_inference_steps": "generate.num_steps",
    "generate.pretrained_model_name_or_path": "generate.model",
}
_FAMILIES = (_ALGORITHM, _AGGREGATION, _PARTITION, _SAMPLING)


def no_such_field(name: str, known: Collection[str], said: str = "") -> ConfigError:
    """The error for a field that is none of `known`: an old one has its new name.

    So has one that goes by another name elsewhere.

    Args:
        name: its dotted name; without a section where that is not known.
        said: how it was written, where that is not its dotted name.
    """
    section, _, field = name.rpartition(".")
    if section in ("", "federated") and field in RENAMED:
        to = RENAMED[field]
        return ConfigError(
            f"config.{said or name} is now config.{to.family.options}.{to.option}, an "
            f"option of {' and '.join(to.of)}"
        )
    for theirs, ours in _ELSEWHERE.items():
        if name in (theirs, theirs.partition(".")[2]) and ours in known:
            return ConfigError(
                f"config.{said or name}: no such field; here it is config.{ours}"
            )
    return unknown(said or name, known, prefix=True)


def in_todays_words(federated: dict[str, Any]) -> dict[str, Any]:
    """`config.federated` of a record, of this version or an earlier one.

    Options stand under their new names, all of them: those that a config left out at
    their defaults. So records compare by what was computed.
    """
    fields = copy.deepcopy(federated)
    for family in _FAMILIES:
        if not isinstance(_of(fields, family), str):
            return fields
        if not isinstance(_options(fields, family), dict):
            return fields
    for old, (family, of, option, unless) in RENAMED.items():
        if old in fields:
            value = fields.pop(old)
            if _of(fields, family) in of and value != unless:
                _options(fields, family).setdefault(option, value)
    for family in _FAMILIES:
        name = _of(fields, family)
        options = _options(fields, family)
        if choices.is_own(name):
            continue  # no code runs because a record names it
        try:
            function = choices.find(family, name)
            options |= choices.check(family, name, options)
        except ConfigError:
            continue  # damaged, or of a later version: as it stands
        for option, (default, _, _) in choices.options(family, function).items():
            if default is not inspect.Parameter.empty:
                options.setdefault(option, default)
    return fields


def _of(fields: dict[str, Any], family: choices.Family) -> Any:
    """Which choice of a family a record names."""
    return fields.get(family.field.rpartition(".")[2], "")


def _options(fields: dict[str, Any], family: choices.Family) -> Any:
    """The options that a record has for it."""
    return fields.setdefault(family.options.rpartition(".")[2], {})
