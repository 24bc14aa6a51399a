"""The report on federated runs: `report.html`, `report.json` and two tables.

    python -m federated.report --config=configs/digits.py --workdir=runs/digits

Reads every run under `<workdir>/federated/` (or those named in
`config.report.runs`), takes runs that differ only in their seed together, and
writes into the workdir

- `report.json`: a list of rows, one a method: `name, algorithm, init, seeds,
  accuracy_mean, accuracy_std, macro_f1_mean, rounds_to_90, bytes_to_90, ...`;
- `report.html`: the same numbers as a page with learning curves, what was measured
  about the clients, synthetic beside real examples, the commands and versions. One
  file, nothing loaded from elsewhere;
- `report.png`: the learning curves alone, to show elsewhere.

How the numbers are taken: accuracy, macro F1 and loss are those of the last evaluated
round, never of the best one, because choosing a round by the test set would flatter
every method. Runs that have not come to their last round are left out; a method that
has no other is marked, and `unfinished` names them. Their spread is the sample standard
deviation over seeds (0 for one seed). Where a method was run in turns
(`config.compare.data`), a seed's number is the mean over its turns, and `by_turn` has
those of each. A method has reached a target in the first evaluated round whose test
accuracy is at least the target; `rounds_to_90` is the mean over seeds (and turns), null
while any run has not reached 90 %; `runs_reaching_90` have. `bytes_to_90` counts what
went up and down until then. What is measured in a round (gradient diversity and its
inverse, cosine of the clients' updates to their mean, their norms) is the mean over
rounds and seeds; `update_norm_std` is the spread within a round. Drift and the accuracy
of clients are those of the last round that has them; `client_accuracy_worst_decile` is
the mean of the tenth of the clients that fares worst (gptfl_jax/fl/personalisation.py),
and `personalised_*` is after local fine-tuning. Starting weights that were trained on
synthetic data are a method of their own, `Synthetic only`: no round, no byte.
"""

import base64
import collections
import html
import io
import itertools
import json
import math
import pathlib
import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from federated import examples, pictures, run_files
from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch, prepare

SYNTHETIC_ONLY = "Synthetic only"
# Fields that may differ between runs of one method, as their seed may.
_NOT_THE_METHOD = (
    *("federated.run", "federated.checkpoint_every", "federated.eval_batch_size"),
    *("federated.client_execution", "federated.client_lanes"),
    *("federated.data_placement", "federated.keep_checkpoints"),
    *("federated.personalisation_every", "federated.personalisation_clients"),
)
_NAMES = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fedopt": "FedOpt",
    "fedavgm": "FedAvgM",
    "scaffold": "SCAFFOLD",
    "fednova": "FedNova",
    "feddyn": "FedDyn",
    "moon": "MOON",
    "local_only": "Local training",
}
_HUES = (
    *("#0b6bcb", "#d9480f", "#2b8a3e", "#7048c6", "#c2255c", "#5c6b00"),
    *("#0c8599", "#f08c00", "#7f4f24", "#c77dff"),
)
_SOLID = ("solid", (0, (8, 1)), (0, (12, 2, 2, 2)))
_DASHED = ((0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MOST_WITH_BANDS = 12
_MOST_BESIDE_CURVES = 8
_MOST_BANDS = 6
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


class Run(NamedTuple):
    """One folder of `<workdir>/federated/`."""

    folder: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def done(self) -> int:
        """Rounds that are done."""
        return self.metrics[-1]["step"]

    @property
    def planned(self) -> int:
        """Rounds that the run is to have."""
        return self.config["federated"]["rounds"]

    @property
    def turn(self) -> str:
        """The turn of `config.compare.data` that the run is; empty: of none."""
        turns = self.config.get("compare", {}).get("data", {})
        for name, changes in turns.items():
            options = self.config["data"]["options"]
            if all(options.get(key) == value for key, value in changes.items()):
                return name
        return ""

    @property
    def method_fields(self) -> dict[str, Any]:
        """The fields of the config that tell methods apart."""
        sections = {name: self.config[name] for name in ("data", "model", "federated")}
        if self.turn:
            changed = self.config["compare"]["data"][self.turn]
            options = sections["data"]["options"]
            kept = {k: v for k, v in options.items() if k not in changed}
            sections["data"] = {**sections["data"], "options": kept}
        fields = _flatten(sections)
        return {k: v for k, v in fields.items() if k not in _NOT_THE_METHOD}


class Method(NamedTuple):
    """Runs that differ only in their seed, and turn."""

    name: str
    algorithm: str
    init: str
    runs: tuple[Run, ...]
    """Those that are finished; where none is, all."""
    unfinished: tuple[Run, ...] = ()
    """Those that are not."""

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config["seed"] for run in self.runs})

    @property
    def turns(self) -> list[str]:
        """Names of the turns, in the order of the config; empty without turns."""
        names = {run.turn for run in self.runs}
        order = self.runs[0].config.get("compare", {}).get("data", {})
        return [name for name in order if name in names]

    def by_seed(self, values: Sequence[Any]) -> list[Any]:
        """Means of each seed's values, of one value a run: over its turns."""
        return [
            np.mean(
                [
                    value
                    for run, value in zip(self.runs, values, strict=True)
                    if run.config["seed"] == seed
                ],
                axis=0,
            )
            for seed in self.seeds
        ]


def load_runs(workdir: pathlib.Path, names: Sequence[str] = ()) -> list[Run]:
    """Reads the runs of a workdir, all of them or those named.

    Raises:
      UserError: there is no run, or one that was named is missing.
    """
    root = workdir / "federated"
    folders = [root / name for name in names] or sorted(
        path.parent for path in root.glob("*/metrics.jsonl")
    )
    if not folders:
        raise UserError(
            f"{root}: no federated run here. `python -m federated.simulate "
            f"--config=... --workdir={workdir}` makes one."
        )
    runs = []
    for folder in folders:
        metrics_file, record_file = folder / "metrics.jsonl", folder / "run.json"
        for file in (metrics_file, record_file):
            if not file.exists():
                raise UserError(
                    f"{file} is missing, but config.report.runs or the folder says "
                    f"that {folder.name} is a run. `python -m federated.simulate "
                    f"--config.federated.run={folder.name} --workdir={workdir}` "
                    "makes it."
                )
        config = run_files.read_config(folder)
        metrics = run_files.read_metrics(folder)
        if not any("accuracy" in line for line in metrics):
            raise UserError(
                f"{metrics_file}: no evaluated round yet. Wait for the run, or leave "
                "it out with config.report.runs."
            )
        runs.append(Run(folder.name, config, metrics))
    return runs


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or (prefix and not tree):
        return {prefix: tree}
    leaves = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def _display_name(algorithm: str, init: str) -> str:
    name = _NAMES.get(algorithm, algorithm)
    if init == "synthetic":
        return f"GPT-FL ({name})"
    return f"{name} from scratch" if init == "random" else f"{name} from {init}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Takes runs that differ only in seed and turn together; those from scratch first.

    Methods that would have the same name are told apart by as few of the fields in
    which they differ as it takes: `FedAvg from scratch (alpha 0.5)`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(run.method_fields, sort_keys=True)
        groups.setdefault(key, []).append(run)
    keys_of_name: dict[str, list[str]] = {}
    for key, members in groups.items():
        federated = members[0].config["federated"]
        name = _display_name(federated["algorithm"], federated["init"])
        keys_of_name.setdefault(name, []).append(key)
    names = {}
    for name, keys in keys_of_name.items():
        fields_of_key = {key: json.loads(key) for key in keys}
        paths = sorted(set().union(*fields_of_key.values()))
        differing = [
            path
            for path in paths
            if len({json.dumps(f.get(path)) for f in fields_of_key.values()}) > 1
        ]
        telling = _telling(differing, list(fields_of_key.values()))
        for key, fields in fields_of_key.items():
            what = ", ".join(
                f"{path.rpartition('.')[2]} {_text(fields.get(path))}"
                for path in telling
            )
            names[key] = f"{name} ({what})" if what else name
    methods = [_method(names[key], members) for key, members in groups.items()]
    order = ("random", "synthetic")
    return sorted(
        methods,
        key=lambda m: (order.index(m.init) if m.init in order else 2, m.name),
    )


def _method(name: str, runs: Sequence[Run]) -> Method:
    ordered = sorted(runs, key=lambda run: (run.config["seed"], run.turn))
    finished = tuple(run for run in ordered if run.done >= run.planned)
    unfinished = tuple(run for run in ordered if run.done < run.planned)
    if not finished:
        done = sorted({run.done for run in unfinished})
        some = f"{done[0]}" if len(done) == 1 else f"{done[0]} to {done[-1]}"
        name += f" (unfinished: {some} of {unfinished[0].planned} rounds)"
    federated = ordered[0].config["federated"]
    return Method(
        *(name, federated["algorithm"], federated["init"]),
        finished or unfinished,
        unfinished,
    )


def _telling(
    paths: Sequence[str], methods: Sequence[dict[str, Any]]
) -> tuple[str, ...]:
    """The fewest of the fields that no two methods have alike in all of them.

    Of equally few, what is tuned for each method (rates) tells least.
    """
    ordered = sorted(paths, key=lambda path: path.endswith("_rate"))
    for count in range(len(ordered)):
        for chosen in itertools.combinations(ordered, count):
            values = {json.dumps([m.get(path) for path in chosen]) for m in methods}
            if len(values) == len(methods):
                return chosen
    return tuple(paths)


def curve(run: Run, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds and values of one metric, where it was measured and finite."""
    points = [
        (line["step"], line[field])
        for line in run.metrics
        if line.get(field) is not None and math.isfinite(line[field])
    ]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


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


def row_of(method: Method, targets: Sequence[float]) -> dict[str, Any]:
    """The numbers of one method; the module's docstring says how they are taken."""
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
        "init": method.init,
        "seeds": method.seeds,
        "runs": len(method.runs),
        "unfinished": {
            run.folder: [run.done, run.planned] for run in method.unfinished
        },
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
    # As federated/experiment.py takes a rate of 0.
    own = {"fedopt": 1e-3, "fedavgm": 1.0, "scaffold": 1.0}
    if method.algorithm not in own:
        return None
    return federated["server_learning_rate"] or own[method.algorithm]


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


def synthetic_only(methods: Sequence[Method]) -> Method | None:
    """The starting weights of the GPT-FL runs as a method of their own.

    Round 0 of a run measures the weights before any client has seen them. Of several
    methods with the same seed, turn and start the first is taken.
    """
    starts: dict[tuple[int, str], Run] = {}
    for method in methods:
        if method.init != "synthetic":
            continue
        for run in method.runs:
            first = next((line for line in run.metrics if line["step"] == 0), None)
            if first is not None:
                start = {**first, "bytes_up": 0, "bytes_down": 0, "seconds": 0.0}
                of_start = Run(run.folder, run.config, [start])
                starts.setdefault((run.config["seed"], run.turn), of_start)
    runs = tuple(starts[key] for key in sorted(starts))
    if not runs:
        return None
    # One training of stage 2 is one measurement, whatever the seeds that start from it.
    measured = {
        (run.turn, run.metrics[0]["accuracy"], run.metrics[0]["loss"]) for run in runs
    }
    if len(measured) == len({run.turn for run in runs}):
        runs = tuple({run.turn: run for run in reversed(runs)}.values())[::-1]
    return Method(SYNTHETIC_ONLY, "none", "synthetic", runs)


def _percent(mean: float, std: float, seeds: int) -> str:
    spread = f" ± {100 * std:.1f}" if seeds > 1 else ""
    return f"{100 * mean:.1f}{spread}"


def _figures(value: float | None) -> str:
    """A number to three significant figures, of all numbers alike."""
    if value is None:
        return "-"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return "0" if value == 0 else f"{value:#.3g}".removesuffix(".")


def _megabytes(count: float | None) -> str:
    return _figures(None if count is None else count / 1e6)


def _table_cells(
    rows: Sequence[dict[str, Any]], targets: Sequence[float]
) -> tuple[list[str], list[list[str]]]:
    labels = [f"{100 * target:g}" for target in targets]
    header = ["method", "accuracy %", "macro F1 %"]
    header += [f"rounds to {label} %" for label in labels]
    header += [f"MB to {label} %" for label in labels]
    body = []
    for row in rows:
        seeds = len(row["seeds"])
        cells = [
            row["name"],
            _percent(row["accuracy_mean"], row["accuracy_std"], seeds),
            _percent(row["macro_f1_mean"], row["macro_f1_std"], seeds),
        ]
        for label in labels:
            rounds = row[f"rounds_to_{label}"]
            if rounds is not None:
                cells.append(f"{rounds:.1f}".removesuffix(".0"))
            elif row["algorithm"] == "none":
                cells.append("-")
            else:
                reached = row[f"runs_reaching_{label}"]
                some = f" ({reached} of {row['runs']} did)" if reached else ""
                cells.append(f"> {row['rounds']}{some}")
        cells += [_megabytes(row[f"bytes_to_{label}"]) for label in labels]
        body.append(cells)
    return header, body


def _client_cells(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[str], list[list[str]]]:
    """Of the second table. Columns that no row has a number for are left out."""

    def number(field: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _figures(row[field])

    def norm(row: dict[str, Any]) -> str:
        mean = number("update_norm_mean")(row)
        return mean if mean == "-" else f"{mean} ± {number('update_norm_std')(row)}"

    def accuracy(what: str) -> Callable[[dict[str, Any]], str]:
        fields = f"client_accuracy_{what}", f"personalised_accuracy_{what}"

        def cell(row: dict[str, Any]) -> str:
            if row[fields[0]] is None:
                return "-"
            return " → ".join(f"{100 * row[field]:.1f}" for field in fields)

        return cell

    def rate(field: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: "-" if row[field] is None else f"{row[field]:g}"

    columns = {
        "client rate": rate("client_learning_rate"),
        "server rate": rate("server_learning_rate"),
        "diversity": number("gradient_diversity_mean"),
        "inverse": number("inverse_gradient_diversity_mean"),
        "cosine": number("cosine_mean"),
        "update norm": norm,
        "drift": number("drift"),
        "clients' accuracy %": accuracy("mean"),
        "worst tenth %": accuracy("worst_decile"),
        "MB up": lambda row: _megabytes(row["bytes_up"]),
        "MB down": lambda row: _megabytes(row["bytes_down"]),
        "dropped": lambda row: f"{row['dropped_clients']:,}",
    }
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items()}
    cells = {
        name: column
        for name, column in cells.items()
        if any(cell != "-" for cell in column)
    }
    body = zip((row["name"] for row in rows), *cells.values(), strict=True)
    return ["method", *cells], [list(line) for line in body]


def table(rows: Sequence[dict[str, Any]], targets: Sequence[float]) -> str:
    """The rows as aligned text, for a terminal."""
    return _aligned(*_table_cells(rows, targets))


def _turn_cells(
    rows: Sequence[dict[str, Any]],
) -> tuple[list[str], list[list[str]]] | None:
    """Accuracy in each turn; None without turns."""
    turns = list(dict.fromkeys(turn for row in rows for turn in row["by_turn"]))
    if not turns:
        return None

    def cell(numbers: dict[str, Any] | None) -> str:
        if numbers is None:
            return "-"
        seeds = len(numbers["seeds"])
        return _percent(numbers["accuracy_mean"], numbers["accuracy_std"], seeds)

    body = [
        [row["name"], *(cell(row["by_turn"].get(t)) for t in turns)] for row in rows
    ]
    return ["accuracy % in turn", *turns], body


def client_table(rows: Sequence[dict[str, Any]]) -> str:
    """What was measured about the clients, in the same way."""
    return _aligned(*_client_cells(rows))


def _aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [
                cell.rjust(width)
                for cell, width in zip(line[1:], widths[1:], strict=True)
            ]
        ).rstrip()
        for line in [header, *body]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


# Pictures


def _style(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """A hue an algorithm; synthetic starts solid, others dashed or dotted.

    Where that leaves too many of one hue (a grid of settings), a hue a method.
    """
    algorithms = list(dict.fromkeys(method.algorithm for method in methods))
    kinds = [method.init == "synthetic" for method in methods]
    alike = [
        (method.algorithm, kind) for method, kind in zip(methods, kinds, strict=True)
    ]
    crowded = max(map(alike.count, alike), default=0) > len(_SOLID)
    style = {}
    for index, (method, kind) in enumerate(zip(methods, kinds, strict=True)):
        patterns = _SOLID if kind else _DASHED
        if crowded:
            nth = kinds[:index].count(kind)
            hue, pattern = nth % len(_HUES), nth // len(_HUES)
        else:
            hue = algorithms.index(method.algorithm) % len(_HUES)
            pattern = alike[:index].count(alike[index])
        style[method.name] = {
            "color": _HUES[hue],
            "linestyle": patterns[pattern % len(patterns)],
        }
    return style


_START_STYLE = {"color": pictures.GREY, "linestyle": (0, (1, 1.5))}


def _draw(
    axes: Axes,
    method: Method,
    style: dict[str, Any],
    field: str,
    *,
    logarithmic: bool = False,
    spread: tuple[str, str] | None = None,
    band: bool = True,
    **options: Any,
) -> bool:
    """A line for the mean over runs, a band of one standard deviation over seeds.

    Each line is thinner than those below it: one that it covers shows at its edges.

    On a logarithmic axis they are those of the logarithm: a band never reaches 0.

    Args:
      spread: the fields that give the band in place of that: its half width, and what
        it does not go below.
      options: of the line.
    """
    curves = [curve(run, field) for run in method.runs]
    if logarithmic:
        curves = [(rounds[v > 0], v[v > 0]) for rounds, v in curves]
    shared = set.intersection(*(set(rounds.tolist()) for rounds, _ in curves))
    if not shared:
        return False
    rounds = np.array(sorted(shared))

    def of_seeds(field: str) -> np.ndarray:
        found = [curve(run, field) for run in method.runs]
        values = [v[np.isin(r, rounds)] for r, v in found]
        return np.stack(method.by_seed(values)).astype(np.float64)

    values = of_seeds(field)
    if spread is not None:
        mean, (width, least) = values.mean(0), map(of_seeds, spread)
        low, high = np.maximum(mean - width.mean(0), least.min(0)), mean + width.mean(0)
    else:
        to_scale, back = (np.log, np.exp) if logarithmic else (np.asarray, np.asarray)
        values = to_scale(values)
        mean = values.mean(0)
        std = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(mean))
        mean, low, high = back(mean), back(mean - std), back(mean + std)
    # A single round is a point, which a line would not show.
    marker = "o" if len(rounds) == 1 else None
    line = {
        "label": pictures.text(method.name),
        "linewidth": 1.8,
        "marker": marker,
        **options,
    }
    # Where lines coincide, one beneath shows on both sides of the one above, or, of
    # another pattern, in its gaps.
    pattern = str(style["linestyle"])
    beneath = sum(other.get_gid() == pattern for other in axes.lines)
    line["linewidth"] *= max(0.75, 1.9 - 0.5 * beneath)
    axes.plot(rounds, mean, gid=pattern, **line, **style)
    if band and (high > low).any():
        axes.fill_between(
            rounds, low, high, color=style["color"], alpha=0.13, linewidth=0
        )
    return True


def _legend(axes: Axes, **options: Any) -> None:
    if len(axes.get_legend_handles_labels()[0]) > _MOST_BESIDE_CURVES:
        return  # it would cover the curves; the tables show each method's line
    axes.legend(
        fontsize=8.5, handlelength=3.2, framealpha=0.8, edgecolor="none", **options
    )


def _legend_below(figure: Figure, axes: Axes) -> None:
    """A legend of any length, for a picture that has to stand alone."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, 48) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    width, height = figure.get_size_inches()
    figure.set_size_inches(1.25 * width, height + 0.075 * lines + 0.2)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        fontsize=7.5,
        handlelength=3.2,
        frameon=False,
    )


def learning_curves(
    methods: Sequence[Method],
    start: Method | None,
    targets: Sequence[float],
    alone: bool = False,
) -> Figure:
    """Test accuracy over rounds, all methods, with their spread over seeds.

    Args:
      alone: the picture goes without the tables, and names the methods in any case.
    """
    figure, axes = pictures.axes("round", "test accuracy, %")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    style = _style(methods)
    for target in targets:
        axes.axhline(target, color="#c9d0d6", linewidth=0.9)
    if start is not None:
        accuracy = row_of(start, ())["accuracy_mean"]
        axes.axhline(accuracy, linewidth=1.4, label=SYNTHETIC_ONLY, **_START_STYLE)
    for method in methods:
        _draw(axes, method, style[method.name], "accuracy", band=_few(methods))
    axes.set_ylim(0, 1.01)
    _axis_of_rounds(axes, methods)
    named = len(axes.get_legend_handles_labels()[0])
    if alone and named > _MOST_BESIDE_CURVES:
        _legend_below(figure, axes)
    else:
        _legend(axes, loc="lower right")
    return figure


def _axis_of_rounds(axes: Axes, methods: Sequence[Method]) -> None:
    """The same axis under all curves of a report."""
    last = max(run.done for method in methods for run in method.runs)
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))


def _few(methods: Sequence[Method]) -> bool:
    """Few enough for bands that can be told apart."""
    return len(methods) <= _MOST_WITH_BANDS


def metric_curves(
    methods: Sequence[Method],
    field: str,
    label: str,
    *,
    logarithmic: bool = False,
    spread: tuple[str, str] | None = None,
) -> Figure | None:
    """One metric over rounds, or None where no run measured it.

    Without a legend: that of `learning_curves` and the tables show each method's line.
    """
    figure, axes = pictures.axes("round", label)
    style = _style(methods)
    band = len(methods) <= _MOST_BANDS if spread else _few(methods)
    drawn = [
        _draw(
            *(axes, method, style[method.name], field),
            logarithmic=logarithmic,
            spread=spread,
            band=band,
        )
        for method in methods
    ]
    if not any(drawn):
        return None
    if logarithmic:
        pictures.logarithmic(axes)
    _axis_of_rounds(axes, methods)
    return figure


def client_accuracy_curves(
    methods: Sequence[Method], what: str, label: str
) -> Figure | None:
    """Accuracy of clients over rounds, pale before and full after fine-tuning.

    Of many methods only after it.

    Args:
      what: "mean" or "worst_decile".
    """
    figure, axes = pictures.axes("round", label)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    style = _style(methods)
    drawn = []
    for method in methods:
        line = axes, method, style[method.name]
        if _few(methods):
            before = {"label": "_", "linewidth": 1.2, "alpha": 0.45, "band": False}
            _draw(*line, f"client_accuracy_{what}", **before)
        drawn.append(_draw(*line, f"personalised_accuracy_{what}", band=_few(methods)))
    if not any(drawn):
        return None
    axes.set_ylim(0, 1.01)
    _axis_of_rounds(axes, methods)
    return figure


def client_accuracies(
    method: Method, workdir: pathlib.Path
) -> tuple[np.ndarray, np.ndarray] | None:
    """(before, after fine-tuning) of the clients of all seeds, at their last test."""
    before, after = [], []
    for run in method.runs:
        found = run_files.read_client_accuracy(workdir / "federated" / run.folder)
        if found is not None:
            before.append(found[0])
            after.append(found[1])
    return (np.concatenate(before), np.concatenate(after)) if before else None


def client_accuracy_histograms(
    methods: Sequence[Method], workdir: pathlib.Path
) -> Figure | None:
    """A row a method: histogram after fine-tuning upwards, before it downwards."""
    found = [(method, client_accuracies(method, workdir)) for method in methods]
    found = [(method, pair) for method, pair in found if pair is not None]
    if not found:
        return None
    names = [textwrap.fill(pictures.text(m.name), 34) for m, _ in found]
    figure, axes = pictures.axes(
        "accuracy of a client on its held-out examples, %",
        "",
        (6.4, 1.1 + 0.62 * len(found)),
    )
    style, edges = _style(methods), np.linspace(0, 1, 21)
    for row, (method, pair) in enumerate(found):
        shares = [np.histogram(x, edges)[0] / len(x) for x in pair]
        height = 0.42 / max(share.max() for share in shares)
        colours = pictures.GREY, style[method.name]["color"]
        signs = (1, -1)  # the axis grows downwards
        for values, share, colour, sign in zip(
            pair, shares, colours, signs, strict=True
        ):
            axes.bar(
                edges[:-1],
                sign * height * share,
                bottom=row,
                width=0.046,
                align="edge",
                color=colour,
                alpha=0.75,
            )
            mean = np.mean(values)
            axes.plot([mean, mean], [row, row + 0.46 * sign], color="k", linewidth=1.6)
    axes.set_yticks(range(len(found)), names, fontsize=7.5)
    axes.set_ylim(len(found) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    axes.grid(axis="y", visible=False)
    return figure


# The page

_CSS = """
:root { color-scheme: light; --ink: #1c2329; --soft: #5f6b76; --line: #dfe4e8; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; margin: .5rem 0; } .soft, figcaption { color: var(--soft); }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; font-size: .85rem; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0;
  position: sticky; left: 0; background: #fff; white-space: normal; min-width: 13rem; }
.private { border-left: 4px solid #d9480f; padding-left: .7rem; }
.swatch { margin-right: .6rem; vertical-align: middle; }
tr.gptfl td { background: #f1f7fd; } tr.gptfl td:first-child { font-weight: 600; }
.figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.sheets { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.clips { display: grid; gap: .8rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.clips audio { width: 100%; height: 2.2rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
.sheets img { image-rendering: pixelated; }
figcaption { font-size: .88rem; margin-top: .3rem; }
pre { background: #f4f6f8; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem;
  border-radius: 6px; line-height: 1.5; }
"""


def _image(kind: str, data: bytes, alt: str, caption: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img alt="{html.escape(alt)}" src="{source}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _sheet_image(sheet: np.ndarray, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    return _image("png", buffer.getvalue(), caption, caption)


def _examples(found: examples.Examples) -> list[str]:
    """Synthetic beside real, as HTML; empty where there are none."""
    if not found.sheets:
        return []
    parts = ["<h2>Synthetic beside real</h2>", '<div class="sheets">']
    parts += [_sheet_image(sheet, text) for text, sheet in found.sheets.items()]
    parts.append("</div>")
    if found.clips:
        counts = collections.Counter(clip.kind for clip in found.clips)
        listed = " and ".join(f"{_count(n, f'{k} clip')}" for k, n in counts.items())
        parts += [
            f"<p>To hear: {listed}, of {examples.LONGEST_S:g} s at most.</p>",
            '<div class="clips">',
            *(_player(clip) for clip in found.clips),
            "</div>",
        ]
    return parts


def _player(clip: examples.HeardClip) -> str:
    source = f"data:audio/wav;base64,{base64.b64encode(clip.wav).decode()}"
    return (
        f'<figure><audio controls preload="none" src="{source}"></audio>'
        f"<figcaption>{html.escape(f'{clip.label}, {clip.kind}')}</figcaption></figure>"
    )


def _swatch(style: dict[str, Any]) -> str:
    """The line of a method, as the pictures draw it."""
    dashes = ""
    if style["linestyle"] != "solid":
        lengths = " ".join(f"{1.8 * length:g}" for length in style["linestyle"][1])
        dashes = f' stroke-dasharray="{lengths}"'
    return (
        '<svg class="swatch" width="34" height="8" aria-hidden="true"><line x1="0" '
        f'y1="4" x2="34" y2="4" stroke-width="2" stroke="{style["color"]}"{dashes}/>'
        "</svg>"
    )


def _html_table(
    rows: Sequence[dict[str, Any]],
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    style: dict[str, dict[str, Any]],
) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    lines = []
    for row, cells in zip(rows, body, strict=True):
        gptfl = row["init"] == "synthetic" and row["algorithm"] != "none"
        mark = ' class="gptfl"' if gptfl else ""
        tds = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        tds = tds.replace("<td>", f"<td>{_swatch(style[row['name']])}", 1)
        lines.append(f"<tr{mark}>{tds}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _best(rows: Sequence[dict[str, Any]], synthetic: bool) -> dict[str, Any] | None:
    candidates = [
        row
        for row in rows
        if row["algorithm"] != "none" and (row["init"] == "synthetic") == synthetic
    ]
    return max(candidates, key=lambda row: row["accuracy_mean"], default=None)


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """What the table says, in a sentence or two; empty with nothing to compare."""
    ours, scratch = _best(rows, synthetic=True), _best(rows, synthetic=False)
    start = next((row for row in rows if row["algorithm"] == "none"), None)
    if ours is None:
        return ""

    def describe(row: dict[str, Any]) -> str:
        seeds = len(row["seeds"])
        mean_and_std = _percent(row["accuracy_mean"], row["accuracy_std"], seeds)
        return f"{row['name']}: {mean_and_std} %"

    others = [describe(row) for row in (scratch, start) if row is not None]
    against = f" Against {' and '.join(others)}." if others else ""
    return f"{describe(ours)} test accuracy after {ours['rounds']} rounds.{against}"


def _records(workdir: pathlib.Path, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Run records of the stages that led here and of the runs shown, oldest first."""
    shown = {workdir / "federated" / run.folder / "run.json" for run in runs}
    files = [
        file
        for file in sorted(workdir.rglob("run.json"))
        if (workdir / "federated") not in file.parents or file in shown
    ]
    records = [run_files.read_provenance(file) for file in files]
    return sorted(records, key=lambda record: str(record.get("date", "")))


def _provenance(workdir: pathlib.Path, runs: Sequence[Run]) -> str:
    """The commands, versions and machines behind the numbers, as HTML."""
    records = _records(workdir, runs)
    commands, versions, machines, commits = [], {}, [], []
    for record in records:
        _, *arguments = record["argv"]
        commands.append(shlex.join(["python", *arguments]))
        versions |= record["versions"]
        if record.get("commit"):
            commits.append(f"commit {record['commit']}")
        count = len(record["devices"])
        machines.append(
            f"{count} {record['device_kind']} device{'s' if count > 1 else ''}, "
            f"{record['platform']}"
        )
    with_versions = ", ".join(f"{name} {value}" for name, value in versions.items())
    lines = [
        with_versions,
        *dict.fromkeys(commits),
        *dict.fromkeys(machines),
        f"{records[0]['date']} to {records[-1]['date']}",
    ]
    return "\n".join(
        [
            "<h2>How it was made</h2>",
            f"<pre>{html.escape(chr(10).join(dict.fromkeys(commands)))}</pre>",
            f'<p class="soft">{"<br>".join(map(html.escape, lines))}</p>',
        ]
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _setting(methods: Sequence[Method], config: ConfigDict) -> str:
    """The setting that all runs share, in words."""
    federated = methods[0].runs[0].config["federated"]
    clients = _count(federated["num_clients"], "client")
    alpha = f"Dirichlet({federated['alpha']:g})"
    match federated["partition"]:
        case "natural":
            clients = "natural clients"
        case "iid":
            clients += " (IID)"
        case "dirichlet":
            clients += f" with label skew {alpha}"
        case "dirichlet_balanced":
            clients += f" of similar size with label skew {alpha}"
        case "shards":
            each = federated.get("shards_per_client")
            shards = "shards" if each is None else _count(each, "shard")
            clients += f" with {shards} of one label each"
        case "quantity_skew":
            clients += f" with sizes drawn from {alpha}"
        case other:
            clients += f" ({other})"
    local = (
        _count(federated["local_steps"], "step")
        if federated["local_steps"]
        else _count(federated["local_epochs"], "epoch")
    )
    seeds = {run.config["seed"] for method in methods for run in method.runs}
    names = methods[0].turns
    turns = f" in each of {len(names)} turns ({', '.join(names)})" if names else ""
    held_out = federated.get("client_test_fraction", 0)
    if held_out:
        clients += f", who hold out {held_out:.0%} of their examples"
    return (
        f"{config.data.source}: {clients}, {federated['cohort_size']} of them a round, "
        f"each for {local} in batches of {federated['batch_size']}; "
        f"{_count(federated['rounds'], 'round')}, {_count(len(seeds), 'seed')}{turns}."
    )


def _figure(figure: Figure | None, alt: str, caption: str) -> str:
    """A figure as HTML; nothing where there is none."""
    if figure is None:
        return ""
    return _image("svg+xml", pictures.svg(figure), alt, caption)


def _clients(
    methods: Sequence[Method],
    rows: Sequence[dict[str, Any]],
    style: dict[str, dict[str, Any]],
    workdir: pathlib.Path,
) -> list[str]:
    """What was measured about the clients and their updates, as HTML."""
    tested = any(row["client_accuracy_mean"] is not None for row in rows)
    accuracy = (
        " Clients' accuracy is on examples that they hold out of their training, every "
        "client counting the same, before → after local fine-tuning; the worst tenth "
        "are the clients with the lowest."
    )
    spread = ""
    if len(methods) <= _MOST_BANDS:
        spread = ", and their standard deviation over the clients of a round"
    first = methods[0].runs[0]
    picture = None
    partition = run_files.read_partition(workdir / "federated" / first.folder)
    if partition is not None:
        picture = pictures.partition(*partition)
    return [
        "<h2>The clients</h2>",
        '<p class="soft">Means over rounds and seeds; the update norm ± its standard '
        "deviation over a round's clients. Drift and MB are those of the last "
        f"round.{accuracy if tested else ''}</p>",
        _html_table(rows, *_client_cells(rows), style),
        '<div class="figures">',
        _figure(
            metric_curves(
                *(methods, "gradient_diversity", "gradient diversity"), logarithmic=True
            ),
            "gradient diversity over rounds",
            "Gradient diversity: the sum of the squared norms of the clients' updates "
            "over the squared norm of their sum. Low: clients agree.",
        ),
        _figure(
            metric_curves(methods, "cosine_mean", "cosine to the mean update"),
            "cosine between clients' updates and their mean over rounds",
            "Cosine between a client's update and the mean of all, averaged over the "
            "clients of a round. 1: they agree.",
        ),
        _figure(
            metric_curves(
                *(methods, "update_norm_mean", "norm of a client's update"),
                logarithmic=True,
                spread=("update_norm_std", "update_norm_min"),
            ),
            "norm of the clients' updates over rounds",
            f"How far clients move in a round{spread}.",
        ),
        _figure(
            metric_curves(methods, "drift", "distance from the start"),
            "distance of the weights from the start over rounds",
            "Drift: distance of the global weights from those the run started with.",
        ),
        _figure(
            client_accuracy_curves(methods, "mean", "accuracy of clients, %"),
            "accuracy of clients over rounds",
            "Mean over clients of their accuracy on held-out examples"
            + (
                ". Pale: before local fine-tuning; full: after it."
                if _few(methods)
                else ", after local fine-tuning."
            ),
        ),
        _figure(
            client_accuracy_curves(
                methods, "worst_decile", "accuracy of the worst tenth, %"
            ),
            "accuracy of the worst tenth of the clients over rounds",
            "The same for the tenth of the clients with the lowest accuracy.",
        ),
        _figure(
            client_accuracy_histograms(methods, workdir),
            "histograms of the accuracy of clients",
            "Clients by accuracy at the last test, all seeds. Grey, downwards: before "
            "local fine-tuning; upwards: after it. The ticks are the means.",
        ),
        _figure(
            picture,
            "examples of each class the clients hold",
            f"What clients hold for training (seed {first.config['seed']}).",
        ),
        "</div>",
    ]


_PRIVATE = (
    "Do not share this page as it is: it may show private examples, folders of this "
    "machine, and how many examples of each class every client holds."
)


def _left_out(methods: Sequence[Method]) -> str:
    """The sentence about unfinished runs; empty where there are none."""
    runs = [
        f"{run.folder} ({run.done} of {run.planned} rounds)"
        for method in methods
        for run in method.unfinished
        if run not in method.runs
    ]
    return f" Left out, being unfinished: {', '.join(runs)}." if runs else ""


def page(
    methods: Sequence[Method],
    rows: Sequence[dict[str, Any]],
    config: ConfigDict,
    workdir: pathlib.Path,
) -> str:
    """The whole of report.html."""
    targets = config.report.targets
    by_turn = _turn_cells(rows)
    start = synthetic_only(methods)
    runs = [run for method in methods for run in method.runs]
    style = _style(methods) | {SYNTHETIC_ONLY: _START_STYLE}
    bands = ", bands one standard deviation" if _few(methods) else ""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>GPT-FL on {html.escape(config.data.source)}</title>",
        f"<style>{_CSS}</style></head><body>",
        f"<h1>GPT-FL on {html.escape(config.data.source)}</h1>",
        f'<p class="private">{_PRIVATE}</p>',
        f"<p>{html.escape(headline(rows))}</p>",
        f'<p class="soft">{html.escape(_setting(methods, config))} Accuracy and F1 on '
        "the test set after the last round, mean ± standard deviation over seeds; "
        "MB are all weights sent up and down until then."
        + (" A seed's number is the mean over its turns." if by_turn else "")
        + html.escape(_left_out(methods))
        + "</p>",
        _html_table(rows, *_table_cells(rows, targets), style),
        _html_table(rows, *by_turn, style) if by_turn else "",
        "<h2>Learning curves</h2>",
        '<div class="figures">',
        _figure(
            learning_curves(methods, start, targets),
            "test accuracy over rounds",
            f"Test accuracy. Lines are means over seeds{bands}.",
        ),
        _figure(
            metric_curves(
                methods, "loss", "test loss (cross-entropy)", logarithmic=True
            ),
            "test loss over rounds",
            "Test loss of the global model.",
        ),
        "</div>",
        *_clients(methods, rows, style, workdir),
    ]
    parts += _examples(examples.load(config, workdir))
    parts += [_provenance(workdir, runs), "</body></html>"]
    return "\n".join(parts)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Writes report.json, report.html and report.png and prints the table."""
    prepare(config)
    runs = load_runs(workdir, config.report.runs)
    methods = methods_of(runs)
    start = synthetic_only(methods)
    targets = config.report.targets
    rows = [row_of(method, targets) for method in ([start] if start else []) + methods]
    artifacts.remove_leftovers(workdir)  # of a report that was killed
    artifacts.write_json(workdir / "report.json", rows)
    artifacts.write_text(workdir / "report.html", page(methods, rows, config, workdir))
    artifacts.write_bytes(
        workdir / "report.png",
        pictures.png(learning_curves(methods, start, targets, alone=True)),
    )
    print(table(rows, targets))
    print()
    by_turn = _turn_cells(rows)
    if by_turn:
        print(_aligned(*by_turn))
        print()
    print(client_table(rows))
    for method in methods:
        for each in method.unfinished:
            left_out = "" if each in method.runs else ", left out of the numbers"
            print(
                f"{each.folder}: {each.done} of {each.planned} rounds so far{left_out}"
            )
    print()
    print(f"report   {workdir / 'report.html'}")
    print(f"numbers  {workdir / 'report.json'}")
    print(f"curves   {workdir / 'report.png'}")
    preview = workdir / "synthetic" / "preview.png"
    if preview.exists():
        print(f"samples  {preview}")


def main() -> None:
    """Entry point of `python -m federated.report` and `gptfl-report`."""
    launch(run, ("data", "report"))


if __name__ == "__main__":
    main()
