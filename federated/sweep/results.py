"""What a sweep has found: a row a point, by mean accuracy."""

import contextlib
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from federated import run_files, series
from federated.report.tables import Table
from federated.sweep.points import Point
from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say


def rows(
    config: ConfigDict, points: Sequence[Point], folder: pathlib.Path
) -> list[dict[str, Any]]:
    """The numbers of each point, best first; those without all their runs last.

    A run's accuracy is that of its last round. A seed's is the mean over the turns of
    `compare.data`, and a point's the mean over its seeds. The rank is that among the
    points that have all runs, 1 for the best, of each seed; then the mean over seeds.

    Args:
        config: of the sweep.
        points: its points.
        folder: that the runs' `federated/` is in.
    """
    seeds = list(config.compare.seeds)
    found = []
    for point in points:
        by_seed = [
            [
                _accuracy(
                    folder / "federated" / series.run_name(point.name, turn, seed)
                )
                for turn in config.compare.data or [""]
            ]
            for seed in seeds
        ]
        measured = [value for seed in by_seed for value in seed if value is not None]
        whole = len(measured) == sum(map(len, by_seed))
        row = {
            "name": point.name,
            "values": point.values,
            "runs": sum(map(len, by_seed)),
            "done": len(measured),
            "by_seed": [float(np.mean(seed)) for seed in by_seed] if whole else None,
        }
        found.append(row)
    complete = [row for row in found if row["by_seed"] is not None]
    ranks = mean_ranks(np.array([row["by_seed"] for row in complete]))
    for row, rank in zip(complete, ranks, strict=True):
        values = np.array(row["by_seed"])
        row["accuracy_mean"] = float(values.mean())
        row["accuracy_std"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        row["rank"] = float(rank)
    complete.sort(key=lambda row: (-row["accuracy_mean"], row["rank"]))
    return [*complete, *(row for row in found if row["by_seed"] is None)]


def keep_former(folder: pathlib.Path, found: Sequence[dict[str, Any]]) -> None:
    """Gives the page and numbers of a former sweep other names, where they say more.

    They do where the former has points, or seeds of them, that this sweep has not.

    Args:
        folder: of both.
        found: of this sweep, the rows.

    Raises:
        UserError: the former's numbers are damaged.
    """
    shape = {"points": [{"name": "text", "runs": "whole"}]}
    remedy = "delete it and start the sweep again, whose runs stay"
    try:
        former = artifacts.read_json(folder / "sweep.json", shape, remedy)["points"]
    except FileNotFoundError:
        return
    runs = {row["name"]: row["runs"] for row in found}
    if all(row["runs"] <= runs.get(row["name"], 0) for row in former):
        return
    names = (f"sweep-{number}" for number in itertools.count(1))
    name = next(each for each in names if not (folder / f"{each}.json").exists())
    # The numbers last: where this is killed between, the next time ends it.
    for kind in ("html", "json"):
        with contextlib.suppress(FileNotFoundError):
            (folder / f"sweep.{kind}").rename(folder / f"{name}.{kind}")
    say(f"the former sweep had other points: its page is {folder / name}.html")


def mean_ranks(
    scores: Float[np.ndarray, "points seeds"],
) -> Float[np.ndarray, " points"]:
    """Each point's rank among all, the mean over seeds: 1 is the best.

    Equal scores share the mean of their ranks.
    """
    if not len(scores):
        return np.zeros(0)
    better = (scores[None] > scores[:, None]).sum(1)
    equal = (scores[None] == scores[:, None]).sum(1)
    return (better + (equal + 1) / 2).mean(1)


def _accuracy(folder: pathlib.Path) -> float | None:
    """Of the last round; None: it is not done, or has failed."""
    try:
        planned = run_files.read_config(folder)["federated"]["rounds"]
    except FileNotFoundError:
        return None
    lines = run_files.read_metrics(folder)
    if not lines or lines[-1]["step"] < planned:
        return None
    return lines[-1].get("accuracy")


def table(found: Sequence[dict[str, Any]], fields: Sequence[str]) -> Table:
    """The rows as text: place, what was varied, accuracy and rank."""
    header = ["place", *(field.rpartition(".")[2] for field in fields)]
    header += ["accuracy %", "mean rank"]
    lines = []
    for place, row in enumerate(found, start=1):
        cells = [row["values"].get(field, "-") for field in fields]
        if row["by_seed"] is None:
            missing = f"{row['done']} of {row['runs']} runs done"
            lines.append(["-", *cells, missing, "-"])
            continue
        accuracy = f"{100 * row['accuracy_mean']:.1f}"
        if len(row["by_seed"]) > 1:
            accuracy += f" ± {100 * row['accuracy_std']:.1f}"
        lines.append([str(place), *cells, accuracy, f"{row['rank']:.1f}"])
    return Table(header, lines)


def best(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the best point.

    Raises:
        UserError: none has all its runs.
    """
    if not found or found[0]["by_seed"] is None:
        raise UserError(
            "no point of the sweep has all its runs: start it again to go on, or see "
            "above why they failed"
        )
    return found[0]
