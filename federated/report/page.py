"""What the page of the report shows; `page.html.jinja` is its text and layout."""

import collections
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from federated import pages, pictures, run_files
from federated.report import examples, figures, tables
from federated.report.runs import (
    SYNTHETIC_ONLY,
    Method,
    Run,
    differing,
    told,
    value_text,
)
from gptfl_jax import choices, drawing
from gptfl_jax.progress import counted

_TEMPLATE = pages.template(pathlib.Path(__file__).parent)
# Said of the settings where methods differ in it.
_SAID = (
    *("data.", "model.", "federated.aggregation", "federated.sampling"),
    *("federated.weighting", "federated.dropout", "federated.trainable"),
)
# Methods of the largest of several settings that are named.
_MOST_NAMED = 3


def render(
    methods: Sequence[Method],
    rows: Sequence[dict[str, Any]],
    shown: dict[str, tables.Table | None],
    config: ConfigDict,
    workdir: pathlib.Path,
) -> str:
    """The whole of report.html.

    Args:
        methods: those that were run.
        rows: their numbers, and those of the starting weights, as in report.json.
        shown: the tables, by name.
        config: of the report.
        workdir: where examples and records are found.
    """
    drawn = figures.every(methods, rows, config.report.targets, workdir)
    found = examples.load(config, workdir)
    counts = collections.Counter(clip.kind for clip in found.clips)
    first = methods[0]
    several = any(method.task != first.task for method in methods)
    return _TEMPLATE.render(
        source=", ".join(dict.fromkeys(map(_source, methods))),
        private=private(found.real, drawn["partition"] is not None),
        private_examples=config.report.private_examples,
        headline=headline(rows),
        real_examples=found.real,
        settings=settings(methods),
        left_out=_left_out(methods),
        partial=", ".join(run.folder for each in methods for run in each.partial),
        tables=shown,
        same_start=any(row["algorithm"] == "none" and row["runs"] == 1 for row in rows),
        against_best=_against_one(rows),
        marks=_marks(methods, rows),
        last_accuracies=last_accuracies(rows),
        clients_tested=any(row["client_accuracy_mean"] is not None for row in rows),
        pictures={
            name: pages.data_uri("image/svg+xml", pictures.svg(figure))
            for name, figure in drawn.items()
            if figure is not None
        },
        bands=figures.have_bands(methods),
        client_bands=figures.have_client_bands(methods),
        partition_of=f"seed {first.runs[0].config['seed']}"
        + (f", {first.name}" if several else ""),
        sheets={
            caption: pages.data_uri(
                "image/png", drawing.encode_png(sheet, compress_level=9)
            )
            for caption, sheet in found.sheets.items()
        },
        clips=[
            {
                "label": clip.label,
                "kind": clip.kind,
                "source": pages.data_uri("audio/wav", clip.wav),
            }
            for clip in found.clips
        ],
        clips_counted=" and ".join(
            counted(number, f"{kind} clip") for kind, number in counts.items()
        ),
        longest_clip=f"{examples.LONGEST_S:g}",
        provenance=provenance(
            workdir, [run for method in methods for run in method.runs]
        ),
    )


def private(examples: bool, partition: bool) -> str:
    """What the page shows that strangers should not see, in words."""
    shown = ["folders of this machine"]
    if partition:
        shown.append("how many examples of each class every client holds")
    if examples:
        shown.append("examples of the clients' data")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def _against_one(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether methods are compared with the best, not each with its own."""
    compared = [row for row in rows if row["difference"]]
    scratch = {row["name"] for row in rows if row["init"] == "random"}
    return any(
        row["init"] == "random" or row["difference"]["to"] not in scratch
        for row in compared
    )


def last_accuracies(rows: Sequence[dict[str, Any]]) -> str:
    """What the learning curves end at, for those who do not see them."""
    shown = [f"{row['name']} {100 * row['accuracy_mean']:.1f} %" for row in rows]
    more = f", and {len(rows) - 12} more" if len(rows) > 12 else ""
    return f"After the last round: {', '.join(shown[:12])}{more}."


def _marks(
    methods: Sequence[Method], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """How the tables mark each row: GPT-FL or not, and its line in the pictures."""
    style = figures.styles(methods) | {SYNTHETIC_ONLY: figures.START_STYLE}
    marks = []
    for row in rows:
        pattern = style[row["name"]]["linestyle"]
        lengths = () if pattern == "solid" else pattern[1]
        marker = style[row["name"]].get("marker", "")
        marks.append(
            {
                "gptfl": row["init"] == "synthetic" and row["algorithm"] != "none",
                "color": style[row["name"]]["color"],
                "dashes": " ".join(f"{1.8 * length:g}" for length in lengths),
                "outline": pictures.outline(marker, 8) if marker else "",
            }
        )
    return marks


def _best(rows: Sequence[dict[str, Any]], synthetic: bool) -> dict[str, Any] | None:
    candidates = [
        row
        for row in rows
        if row["algorithm"] != "none" and (row["init"] == "synthetic") == synthetic
    ]
    return max(candidates, key=lambda row: row["accuracy_mean"], default=None)


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """What the table says, in a sentence or two; empty with nothing to compare."""
    ours = _best(rows, synthetic=True)
    if ours is None:
        return ""
    of_task = [row for row in rows if row["task"] == ours["task"]]
    scratch = _best(of_task, synthetic=False)
    start = next((row for row in rows if row["algorithm"] == "none"), None)

    def describe(row: dict[str, Any]) -> str:
        seeds = len(row["seeds"])
        mean_and_std = tables.percent(row["accuracy_mean"], row["accuracy_std"], seeds)
        return f"{row['name']}: {mean_and_std} %"

    others = [describe(row) for row in (scratch, start) if row is not None]
    against = f" Against {' and '.join(others)}." if others else ""
    rounds = counted(ours["rounds"], "round")
    return f"{describe(ours)} test accuracy after {rounds}.{against}"


def settings(methods: Sequence[Method]) -> list[str]:
    """The setting that all methods share, in words; of several each, and whose it is.

    The largest comes last, and may be that of all others.
    """
    fields = [method.runs[0].method_fields for method in methods]
    more = [
        path
        for path in differing(fields)
        if path.startswith(_SAID) and path not in ("data.source", "model.weights")
    ]
    alike: dict[tuple[str, str], list[Method]] = {}
    for method in methods:
        alike.setdefault(_setting(method, more), []).append(method)
    by_size = sorted(alike.items(), key=lambda item: len(item[1]))
    lines = []
    for (words, ending), of_setting in by_size:
        seeds = {run.config["seed"] for method in of_setting for run in method.runs}
        line = f"{words}, {counted(len(seeds), 'seed')}{ending}"
        if len(alike) > 1:
            names = ", ".join(method.name for method in of_setting)
            rest = len(lines) == len(alike) - 1 and len(of_setting) > _MOST_NAMED
            line += f": {'all others' if rest else names}"
        lines.append(f"{line}.")
    return lines


def _source(method: Method) -> str:
    return choices.stem(method.runs[0].config["data"]["source"])


def _setting(method: Method, more: Sequence[str]) -> tuple[str, str]:
    """The setting of a method in words: what stands before the seeds, and after them.

    Args:
        more: fields to say as well.
    """
    federated = method.runs[0].config["federated"]
    clients = clients_in_words(federated)
    local = (
        counted(federated["local_steps"], "step")
        if federated["local_steps"]
        else counted(federated["local_epochs"], "epoch")
    )
    names, turns = method.turns, ""
    if names:
        where = "one turn" if len(names) == 1 else f"each of {len(names)} turns"
        turns = f" in {where} ({', '.join(names)})"
    also = told(method.runs[0].method_fields, more)
    held_out = federated.get("client_test_fraction", 0)
    if held_out:
        clients += f", who hold out {held_out:.0%} of their examples"
    words = (
        f"{_source(method)}: {clients}, {federated['cohort_size']} of them a round, "
        f"each for {local} in batches of {federated['batch_size']}; "
        f"{counted(federated['rounds'], 'round')}"
    )
    return words, f"{turns}; {also}" if also else turns


def clients_in_words(federated: dict[str, Any]) -> str:
    """How many clients there are, and what they hold, in words."""
    clients = counted(federated["num_clients"], "client")
    options = federated["partition_options"]
    alpha = f"Dirichlet({options.get('alpha', 0):g})"
    match federated["partition"]:
        case "natural":
            return "natural clients"
        case "from_file":
            return f"clients as {pathlib.PurePath(options['file']).name} deals them"
        case "iid":
            return f"{clients} (IID)"
        case "dirichlet":
            return f"{clients} with label skew {alpha}"
        case "dirichlet_balanced":
            return f"{clients} of similar size with label skew {alpha}"
        case "shards":
            shards = counted(options["shards_per_client"], "shard")
            return f"{clients} with {shards} of one label each"
        case "quantity_skew":
            return f"{clients} with sizes drawn from {alpha}"
        case other:  # of a file of its own: its name and options say it
            set_to = [f"{name} {value_text(v)}" for name, v in options.items()]
            return f"{clients} ({', '.join([choices.stem(other), *set_to])})"


def _left_out(methods: Sequence[Method]) -> str:
    """The unfinished runs that no number counts; empty where there are none."""
    return ", ".join(
        f"{run.folder} ({run.done} of {counted(run.planned, 'round')})"
        for method in methods
        for run in method.unfinished
        if run not in method.runs
    )


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


def _command(argv: Sequence[str]) -> str:
    """The command line of a program; a notebook's own would say nothing."""
    _, *arguments = argv
    if any(argument.startswith("--config") for argument in arguments):
        return shlex.join(["python", *arguments])
    return "# called from Python"


class Provenance(NamedTuple):
    """How the numbers came about."""

    commands: list[str]
    """Command lines, oldest first; a comment where a stage was called from Python."""
    circumstances: list[str]
    """Versions, commits, machines and dates, in words."""


def provenance(workdir: pathlib.Path, runs: Sequence[Run]) -> Provenance:
    """The commands, versions and machines behind the runs.

    Raises:
        UserError: a record is damaged.
    """
    records = _records(workdir, runs)
    commands, versions, machines, commits = [], {}, [], []
    for record in records:
        commands.append(_command(record["argv"]))
        versions |= record["versions"]
        if record.get("commit"):
            commits.append(f"commit {record['commit']}")
        devices = counted(len(record["devices"]), f"{record['device_kind']} device")
        machines.append(f"{devices}, {record['platform']}")
    circumstances = [
        ", ".join(f"{name} {value}" for name, value in versions.items()),
        *dict.fromkeys(commits),
        *dict.fromkeys(machines),
        f"{records[0]['date']} to {records[-1]['date']}",
    ]
    return Provenance(list(dict.fromkeys(commands)), circumstances)
