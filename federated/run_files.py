"""Reading what federated.simulate has left of a run, as anyone may have changed it."""

import pathlib
from typing import Any

import numpy as np

from gptfl_jax import artifacts, choices, configuration, families
from gptfl_jax.artifacts import NUMBER
from gptfl_jax.errors import ConfigError, UserError

# Null stands for NaN.
_LINE = {
    **dict.fromkeys(("bytes_up", "bytes_down", "seconds"), "number"),
    "*": NUMBER,
}
_OF_TESTS = ("accuracy", "macro_f1", "loss")

_CHOICES = (
    *(families.ALGORITHM, families.AGGREGATION),
    *(families.PARTITION, families.SAMPLING),
)
_OPTIONS = [family.options.rpartition(".")[2] for family in _CHOICES]
_TURNS = {"*": {"*": "anything"}}
_RUN = {
    "config": {
        "seed": "whole",
        "model": {},
        "data": {"source": "text", "options": {}},
        "compare?": {"data?": _TURNS},
        "federated": {
            **dict.fromkeys(("algorithm", "init", "partition"), "text"),
            **dict.fromkeys(
                ("rounds", "num_clients", "cohort_size", "batch_size"), "whole"
            ),
            **dict.fromkeys(("local_steps", "local_epochs"), "whole"),
            "client_learning_rate": "number",
            **dict.fromkeys(("aggregation?", "sampling?"), "text"),
            **dict.fromkeys((f"{name}?" for name in _OPTIONS), {}),
            "client_test_fraction?": "number",
        },
    },
}
_PROVENANCE = {
    "date": "text",
    # File names in it need not be Unicode.
    "argv": ["string"],
    "versions": {"*": "text"},
    "platform": "text",
    "devices": ["text"],
    "device_kind": "text",
}


def read_metrics(folder: pathlib.Path, rounds: int = 0) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl.

    Args:
        rounds: that must be there: those of the checkpoint that the run has.

    Raises:
        UserError: a line is damaged, or missing.
    """
    path = folder / "metrics.jsonl"
    if rounds:
        lines = artifacts.read_metrics_until(path, rounds, fields=_LINE)
    else:
        lines = artifacts.read_metrics(path, _LINE)
    for line in lines:
        missing = [name for name in _OF_TESTS if name not in line]
        if missing and len(missing) < len(_OF_TESTS):
            raise UserError(
                f"{path}: the line of round {line['step']} has no {missing[0]}. Remove "
                f"the line, or {_again(folder)}"
            )
    return lines


def rounds_done(folder: pathlib.Path) -> int:
    """The last round of which a run has a line; 0: none, or it cannot be read."""
    try:
        lines = read_metrics(folder)
    except (FileNotFoundError, UserError):
        return 0
    return max((line["step"] for line in lines), default=0)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The config that a run was made with, of its run.json, in today's words.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    remedy = f"{_again(folder)}, or leave it out with config.report.runs"
    path = folder / "run.json"
    config = artifacts.read_json(path, _RUN, remedy)["config"]
    federated = configuration.in_todays_words(config["federated"])
    for family, options in zip(_CHOICES, _OPTIONS, strict=True):
        name = federated.get(family.field.rpartition(".")[2])
        if name in choices.available(family):
            try:
                choices.check(family, name, federated[options])
            except ConfigError as error:
                raise UserError(f"{path}: {error}; {remedy}") from None
    return {**config, "federated": configuration.without_unset(federated)}


def read_provenance(path: pathlib.Path) -> dict[str, Any]:
    """How and when something was made: a run.json of any stage.

    Raises:
        UserError: it is damaged.
    """
    remedy = "delete it, and the report goes without"
    record = artifacts.read_json(path, _PROVENANCE, remedy)
    if not record["argv"]:
        raise UserError(f"{path}: its argv is empty; {remedy}")
    return record


def read_partition(folder: pathlib.Path) -> tuple[np.ndarray, list[str]] | None:
    """Examples [clients, classes], and the names of these; None where none were saved.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "partition.json"
    shape = {"label_counts": [["whole"]], "class_names": ["text"]}
    remedy = "delete it, and the report goes without"
    try:
        content = artifacts.read_json(path, shape, remedy)
    except FileNotFoundError:
        return None
    counts, names = content["label_counts"], content["class_names"]
    if {len(row) for row in counts} != {len(names)} or not names:
        raise UserError(f"{path}: its counts are not of its classes; {remedy}")
    # Exact up to the largest count that is allowed.
    numbers = np.array(counts, np.float64)
    if (numbers < 0).any() or (numbers >= 2**53).any():
        raise UserError(f"{path}: a count is out of range; {remedy}")
    return numbers.astype(np.int64), names


def read_client_accuracy(
    folder: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Accuracies [clients] before and after fine-tuning; None where none were saved.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "client_accuracy.json"
    names = ("examples", "right_before", "right_after")
    remedy = "delete it, and the report goes without"
    try:
        content = artifacts.read_json(path, dict.fromkeys(names, ["number"]), remedy)
    except FileNotFoundError:
        return None
    columns = [np.array(content[name], np.float64) for name in names]
    if len({len(column) for column in columns}) > 1 or not len(columns[0]):
        raise UserError(f"{path}: its lists are not of the same clients; {remedy}")
    total, before, after = columns
    if (total <= 0).any() or any(
        (right < 0).any() or (right > total).any() for right in (before, after)
    ):
        raise UserError(f"{path}: a count is out of range; {remedy}")
    return before / total, after / total


def _again(folder: pathlib.Path) -> str:
    return f"delete {folder} and run it again"
