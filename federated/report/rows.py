"""The numbers of a method: a row of report.json."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from federated.report import cost
from federated.report.runs import Method, Run, algorithm_name, curve

# What a round measures about the clients' updates.
_OF_ROUNDS = (
    *("gradient_diversity", "inverse_gradient_diversity", "cosine_mean"),
    *("update_norm_mean", "update_norm_std"),
)
_OF_CLIENTS = tuple(
    f"{when}_accuracy_{what}"
    for when in ("client", "personalised")
    for what in ("mean", "worst_decile", "best")
)


def row_of(method: Method, targets: Sequence[float]) -> dict[str, Any]:
    """The numbers of one method; the package's docstring says how they are taken."""
    last = [
        next(line for line in reversed(run.metrics) if "accuracy" in line)
        for run in method.runs
    ]

    def over_seeds(field: str) -> tuple[float, float]:
        return _mean_and_std(method.by_seed([line[field] for line in last]))

    accuracy, accuracy_std = over_seeds("accuracy")
    macro_f1, macro_f1_std = over_seeds("macro_f1")
    row = {
        "name": method.name,
        "algorithm": method.algorithm,
        "method": algorithm_name(method.runs[0].config["federated"]),
        "init": method.init,
        "task": method.task,
        "seeds": method.seeds,
        "runs": len(method.runs),
        "unfinished": {
            run.folder: [run.done, run.planned] for run in method.unfinished
        },
        "partial": [run.folder for run in method.partial],
        "client_learning_rate": _rate(method, "client"),
        "server_learning_rate": _rate(method, "server"),
        "rounds": min(run.metrics[-1]["step"] for run in method.runs),
        "accuracy_mean": accuracy,
        "accuracy_std": accuracy_std,
        "macro_f1_mean": macro_f1,
        "macro_f1_std": macro_f1_std,
        "loss_mean": over_seeds("loss")[0],
        "by_turn": {turn: _turn_row(method, turn) for turn in method.turns},
    }
    for target in targets:
        reached = [_first_reaching(run, target) for run in method.runs]
        found = [line for line in reached if line is not None]
        everywhere = len(found) == len(reached)
        label = f"{100 * target:g}"
        row[f"rounds_to_{label}"] = (
            float(np.mean([line["step"] for line in found])) if everywhere else None
        )
        row[f"bytes_to_{label}"] = (
            float(np.mean([line["bytes_up"] + line["bytes_down"] for line in found]))
            if everywhere
            else None
        )
        row[f"runs_reaching_{label}"] = len(found)
    final = [run.metrics[-1] for run in method.runs]
    for way in ("bytes_up", "bytes_down"):
        row[way] = float(np.mean([line[way] for line in final]))
    row["bytes_total"] = row["bytes_up"] + row["bytes_down"]
    for field in _OF_ROUNDS:
        name = field if field.startswith("update") else f"{field}_mean"
        row[name.replace("mean_mean", "mean")] = _over_seeds(method, field, np.mean)
    for field in ("drift", *_OF_CLIENTS):
        row[field] = _over_seeds(method, field, lambda values: values[-1])
    row["dropped_clients"] = int(
        sum(line.get("dropped", 0) for run in method.runs for line in run.metrics)
    )
    row |= cost.row_of(method)
    row["seconds"] = float(
        np.mean([sum(line["seconds"] for line in run.metrics) for run in method.runs])
    )
    return row


def _rate(method: Method, side: str) -> float | None:
    """The learning rate of clients or server; None where there is none."""
    federated = method.runs[0].config["federated"]
    if method.algorithm == "none":
        return None
    if side == "client":
        return federated["client_learning_rate"]
    return federated["algorithm_options"].get("server_learning_rate")


def _turn_row(method: Method, turn: str) -> dict[str, Any]:
    """The numbers of one turn."""
    runs = tuple(run for run in method.runs if run.turn == turn)
    last = [
        next(line for line in reversed(run.metrics) if "accuracy" in line)
        for run in runs
    ]
    numbers = {"seeds": [run.config["seed"] for run in runs]}
    for field in ("accuracy", "macro_f1"):
        mean, std = _mean_and_std([line[field] for line in last])
        numbers |= {f"{field}_mean": mean, f"{field}_std": std}
    return numbers


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def _first_reaching(run: Run, target: float) -> dict[str, Any] | None:
    return next(
        (line for line in run.metrics if line.get("accuracy", -1.0) >= target), None
    )


def _over_seeds(
    method: Method, field: str, summary: Callable[[np.ndarray], Any]
) -> float | None:
    """Mean over runs of a summary of the rounds; None where nothing was measured."""
    measured = [curve(run, field)[1] for run in method.runs]
    measured = [summary(values) for values in measured if len(values)]
    return float(np.mean(measured)) if measured else None
