"""Reading the runs of a workdir, and taking together those of one method."""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from federated import run_files
from gptfl_jax import artifacts, choices, families
from gptfl_jax.errors import UserError
from gptfl_jax.progress import counted

SYNTHETIC_ONLY = "Synthetic only"
# Fields that may differ between runs of one method, as their seed may.
_NOT_THE_METHOD = (
    *("federated.run", "federated.checkpoint_every", "federated.eval_batch_size"),
    *("federated.client_execution", "federated.client_lanes"),
    *("federated.data_placement", "federated.keep_checkpoints"),
    *("federated.personalisation_every", "federated.personalisation_clients"),
)
# Fields that must be equal for methods to be compared: what clients hold, what is
# tested, and the classifier.
_OF_THE_TASK = (
    *("data.", "model.", "federated.partition", "federated.num_clients"),
    "federated.client_test_fraction",
)
# Of equally few fields that tell methods apart, these tell most.
_TELL_MOST = ("data.source", "federated.partition", "model.name")


class Run(NamedTuple):
    """One folder of `<workdir>/federated/`."""

    folder: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    flops: dict[str, float | None] = {}
    """As the record of the run has them."""

    @property
    def done(self) -> int:
        """Rounds that are done."""
        return self.metrics[-1]["step"]

    @property
    def planned(self) -> int:
        """Rounds that the run is to have."""
        return self.config["federated"]["rounds"]

    @property
    def turns(self) -> dict[str, dict[str, Any]]:
        """`config.compare.data`: changes of the data's options, by turn."""
        return self.config.get("compare", {}).get("data", {})

    @property
    def turn(self) -> str:
        """The turn of `config.compare.data` that the run is; empty: of none.

        It is in the folder's name: what one turn changes, another may have as well.
        """

        def has(changes: dict[str, Any]) -> bool:
            options = self.config["data"]["options"]
            return all(options.get(key) == value for key, value in changes.items())

        found = [
            name
            for name, changes in self.turns.items()
            if self.folder.endswith(f"-{name}-s{self.config['seed']}") and has(changes)
        ]
        return max(found, key=len, default="")

    @property
    def method_fields(self) -> dict[str, Any]:
        """The fields of the config that tell methods apart."""
        sections = {name: self.config[name] for name in ("data", "model", "federated")}
        if self.turn:
            changed = set().union(*self.turns.values())
            options = sections["data"]["options"]
            kept = {k: v for k, v in options.items() if k not in changed}
            sections["data"] = {**sections["data"], "options": kept}
        fields = _flatten(sections)
        if fields["federated.init"] != "weights":
            fields.pop("model.weights", None)
        return {k: v for k, v in fields.items() if k not in _NOT_THE_METHOD}


class Method(NamedTuple):
    """Runs that differ only in their seed, and turn."""

    name: str
    algorithm: str
    init: str
    runs: tuple[Run, ...]
    """Those that are finished, of the seeds with most turns; where none is, all."""
    unfinished: tuple[Run, ...] = ()
    """Those that are not."""
    partial: tuple[Run, ...] = ()
    """Those left out because their seed lacks a turn that another has."""

    @property
    def seeds(self) -> list[int]:
        return sorted({run.config["seed"] for run in self.runs})

    @property
    def task(self) -> dict[str, Any]:
        """The fields that must be equal for methods to be compared."""
        return _task(self.runs[0].method_fields)

    @property
    def turns(self) -> list[str]:
        """Names of the turns, in the order of the config; empty without turns."""
        names = {run.turn for run in self.runs}
        return [name for name in self.runs[0].turns if name in names]

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
        flops = artifacts.read_flops(folder)
        runs.append(Run(folder.name, config, metrics, flops))
    return runs


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or (prefix and not tree):
        return {prefix: tree}
    leaves = {}
    for key, value in tree.items():
        leaves |= _flatten(value, f"{prefix}.{key}" if prefix else key)
    return leaves


def algorithm_name(federated: dict[str, Any]) -> str:
    """What readers call an algorithm, with what is mixed in."""
    algorithm = federated["algorithm"]
    known = choices.available(families.ALGORITHM)
    # A user's own is not imported for its name: a record may name any file.
    name = choices.stem(algorithm)
    if algorithm in known:
        name = choices.title(known[algorithm])
    if count := federated.get("synthetic_per_client"):
        name += f" + {count} synthetic a client"
    if count := federated.get("server_steps"):
        name += f" + {count} server steps"
    return name


def display_name(federated: dict[str, Any]) -> str:
    """What readers call a method: its algorithm, and the weights it starts from."""
    name, init = algorithm_name(federated), federated["init"]
    if init == "synthetic":
        return f"GPT-FL ({name})"
    return f"{name} from scratch" if init == "random" else f"{name} from {init}"


def value_text(value: Any) -> str:
    """The value of a field as readers see it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def told(fields: dict[str, Any], paths: Sequence[str]) -> str:
    """The values of some fields as readers see them; of those that are set."""
    return ", ".join(
        f"{'model' if path == 'model.name' else path.rpartition('.')[2]} "
        f"{value_text(fields[path])}"
        for path in paths
        if fields.get(path, {}) != {}
    )


def differing(methods: Sequence[dict[str, Any]]) -> list[str]:
    """The fields in which methods differ, those that tell most about them first.

    What is tuned for each method (rates) tells least.
    """
    paths = set().union(*methods)
    return sorted(
        (p for p in paths if len({json.dumps(m.get(p)) for m in methods}) > 1),
        key=lambda path: (path.endswith("_rate"), path not in _TELL_MOST, path),
    )


def _task(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        path: value
        for path, value in fields.items()
        if path.startswith(_OF_THE_TASK) and path != "model.weights"  # a start
    }


def methods_of(runs: Sequence[Run]) -> list[Method]:
    """Takes runs that differ only in seed and turn together; those from scratch first.

    Methods that would have the same name are told apart by as few of the fields in
    which they differ as it takes: `FedAvg from scratch (alpha 0.5)`. Where methods have
    several tasks, all of them say theirs so.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(run.method_fields, sort_keys=True)
        groups.setdefault(key, []).append(run)
    keys_of_name: dict[str, list[str]] = {}
    for key, members in groups.items():
        federated = members[0].config["federated"]
        name = display_name(federated)
        keys_of_name.setdefault(name, []).append(key)
    fields_of_key = {key: json.loads(key) for key in groups}
    tasks = {
        json.dumps(task, sort_keys=True): task
        for task in map(_task, fields_of_key.values())
    }
    of_task = _telling([*tasks.values()])
    names = {}
    for name, keys in keys_of_name.items():
        telling = _telling([fields_of_key[key] for key in keys], of_task)
        for key in keys:
            what = told(fields_of_key[key], telling)
            names[key] = f"{name} ({what})" if what else name
    methods = _marked([_method(names[key], members) for key, members in groups.items()])
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
        name += f" (unfinished: {some} of {counted(unfinished[0].planned, 'round')})"
    federated = ordered[0].config["federated"]
    shown = finished or unfinished
    whole = _of_most_turns(shown)
    return Method(
        *(name, federated["algorithm"], federated["init"]),
        *(whole, unfinished),
        tuple(run for run in shown if run not in whole),
    )


def _of_most_turns(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Those of the seeds that were run in most turns.

    A mean over fewer turns is of other test sets: no spread or difference says anything
    of the two.
    """
    turns: dict[int, set[str]] = {}
    for run in runs:
        turns.setdefault(run.config["seed"], set()).add(run.turn)
    most = max(turns.values(), key=len)
    return tuple(run for run in runs if turns[run.config["seed"]] == most)


def _marked(methods: Sequence[Method]) -> list[Method]:
    """With names that say so where a method lacks turns that another has."""
    run_anywhere = {turn for method in methods for turn in method.turns}
    marked = []
    for method in methods:
        names, count = method.turns, len(run_anywhere & method.runs[0].turns.keys())
        if names and len(names) < count:
            mark = f" ({len(names)} of {count} turns: {', '.join(names)})"
            method = method._replace(name=method.name + mark)
        marked.append(method)
    return marked


def _telling(
    methods: Sequence[dict[str, Any]], always: Sequence[str] = ()
) -> list[str]:
    """A few fields that no two methods have alike in all of them.

    Each method has one of them at least, where it has any in which they differ.

    Args:
        always: fields that are among them.
    """
    others = [path for path in differing(methods) if path not in always]

    def tells(paths: Sequence[str]) -> tuple[int, int]:
        values = {json.dumps([m.get(path) for path in paths]) for m in methods}
        return len(values), sum(bool(told(m, paths)) for m in methods)

    most, chosen = tells([*always, *others]), [*always]
    while tells(chosen) != most:
        chosen.append(max(others, key=lambda path: tells([*chosen, path])))
    for path in chosen[len(always) :]:  # what later ones have made needless
        fewer = [each for each in chosen if each != path]
        if tells(fewer) == most:
            chosen = fewer
    return [*always, *(path for path in others if path in chosen)]


def curve(run: Run, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds and values of one metric, where it was measured and finite."""
    points = [
        (line["step"], line[field])
        for line in run.metrics
        if line.get(field) is not None and math.isfinite(line[field])
    ]
    return np.array([p[0] for p in points]), np.array([p[1] for p in points])


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
                of_start = run._replace(metrics=[start])
                starts.setdefault((run.config["seed"], run.turn), of_start)
    if not starts:
        return None
    runs = _of_most_turns([starts[key] for key in sorted(starts)])
    # One training of stage 2 is one measurement, whatever the seeds that start from it.
    measured = {
        (run.turn, run.metrics[0]["accuracy"], run.metrics[0]["loss"]) for run in runs
    }
    if len(measured) == len({run.turn for run in runs}):
        runs = tuple({run.turn: run for run in reversed(runs)}.values())[::-1]
    return Method(SYNTHETIC_ONLY, "none", "synthetic", runs)
