"""One table of all modalities, from what finished experiments have recorded.

    make results

runs the experiments end to end, or goes on with those that were begun, and then

    python -m benchmarks.results

writes `docs/results.md` and the short table of the README. Nothing on the page is typed
by hand: the numbers are those of the runs' metrics.jsonl, taken as `federated.report`
takes them, and the commands, versions, machines and dates are those of their run.json.
Of named experiments (`python -m benchmarks.results digits`) it writes the page alone.
"""

import argparse
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import document
from federated.report import page, rows, runs, tables
from gptfl_jax import artifacts, launch
from gptfl_jax.errors import UserError

PAGE, README = pathlib.Path("docs/results.md"), pathlib.Path("README.md")

_INTRODUCTION = """\
Written by `make results` from what the runs have recorded; the commands below a
table make its numbers again. Accuracy is that of the last round on the test set, in
%, mean ± standard deviation over seeds. Each algorithm has rates of its own from
each start, chosen without the test set."""


class Experiment(NamedTuple):
    """A config whose runs lie in one workdir."""

    title: str
    config: str
    workdir: str
    made_by: str


EXPERIMENTS = (
    Experiment("Handwritten digits", "digits", "runs/digits", "make demo"),
    Experiment("Spoken digits", "fsdd", "runs/fsdd", "make demo-speech"),
    Experiment("Drums", "drumkits", "runs/drumkits", "make demo-sounds"),
)


class Setting(NamedTuple):
    """Methods that share clients, data and effort."""

    clients: str
    description: str
    rows: list[dict[str, Any]]
    """As in report.json, and `algorithm_name`; that of the synthetic start, which has
    no algorithm, first."""


class Results(NamedTuple):
    """What an experiment gave."""

    experiment: Experiment
    targets: tuple[float, ...]
    settings: list[Setting]
    provenance: page.Provenance


def read(experiment: Experiment) -> Results:
    """The finished runs of an experiment.

    Raises:
        UserError: there are none, one is damaged, or one has rounds to go.
    """
    workdir = pathlib.Path(experiment.workdir)
    remedy = f"`{experiment.made_by}` goes on with it"
    if not (workdir / "federated").is_dir():
        raise UserError(f"{workdir}: holds no federated run; `{experiment.made_by}`")
    config = launch.read_config(experiment.config)
    found = runs.load_runs(workdir)
    for run in found:
        if run.done < run.planned:
            raise UserError(
                f"{workdir / 'federated' / run.folder}: {run.done} of {run.planned} "
                f"rounds are done; {remedy}"
            )
    targets = tuple(config.report.targets)
    settings = []
    for clients, members in _grouped(found, _clients):
        methods = runs.methods_of(members)
        start = runs.synthetic_only(methods)
        pairs = [("", start)] if start else []
        pairs += [
            (runs.algorithm_name(method.runs[0].config["federated"]), method)
            for method in methods
        ]
        numbers = [
            rows.row_of(method, targets) | {"algorithm_name": name}
            for name, method in pairs
        ]
        description = " ".join(page.settings(methods))
        settings.append(Setting(clients, description, numbers))
    return Results(experiment, targets, settings, page.provenance(workdir, found))


def _clients(run: runs.Run) -> str:
    return page.clients_in_words(run.config["federated"])


def _grouped(
    found: Sequence[runs.Run], key: Callable[[runs.Run], str]
) -> list[tuple[str, list[runs.Run]]]:
    ordered = sorted(found, key=key)
    return [(name, list(group)) for name, group in itertools.groupby(ordered, key)]


def summary(results: Sequence[Results]) -> str:
    """Every algorithm from scratch and from the synthetic start, side by side."""
    lines = []
    for result in results:
        for setting in result.settings:
            start = _row(setting.rows, "", "synthetic")
            names = dict.fromkeys(row["algorithm_name"] for row in setting.rows)
            for name in filter(None, names):
                both = (_row(setting.rows, name, x) for x in ("random", "synthetic"))
                lines.append(
                    [
                        *(result.experiment.title, setting.clients, name),
                        *map(_accuracy, (start, *both)),
                    ]
                )
    header = ["data", "clients", "algorithm"]
    header += ["synthetic only", "from scratch", "GPT-FL"]
    return document.table(header, lines, texts=3)


def _row(
    numbers: Sequence[dict[str, Any]], algorithm: str, init: str
) -> dict[str, Any] | None:
    """The method's row; of several (as of two rates) the one of most accuracy."""
    wanted = algorithm, init
    found = [r for r in numbers if (r["algorithm_name"], r["init"]) == wanted]
    return max(found, key=lambda row: row["accuracy_mean"], default=None)


def _accuracy(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    seeds = len(row["seeds"])
    return tables.percent(row["accuracy_mean"], row["accuracy_std"], seeds)


def render(results: Sequence[Results]) -> str:
    """The page."""
    parts = [
        "# Results",
        _INTRODUCTION,
        summary(results),
    ]
    for result in results:
        parts.append(f"## {result.experiment.title}")
        for setting in result.settings:
            parts.append(setting.description)
            parts.append(_markdown(_table(setting.rows, result.targets)))
            by_turn = tables.of_turns(setting.rows)
            if by_turn is not None:
                parts.append(_markdown(by_turn))
        commands = "\n".join(result.provenance.commands)
        parts.append(f"```\n{commands}\n```")
        parts.append("\n".join(f"- {line}" for line in result.provenance.circumstances))
    return "\n\n".join(parts) + "\n"


def _table(numbers: Sequence[dict[str, Any]], targets: Sequence[float]) -> tables.Table:
    """`tables.of_methods`, with rates and the number of seeds."""
    table = tables.of_methods(numbers, targets)

    def rate(value):
        return "-" if value is None else f"{value:g}"

    header = [table.header[0], "client rate", "server rate", "seeds", *table.header[1:]]
    lines = [
        [
            line[0],
            rate(row["client_learning_rate"]),
            rate(row["server_learning_rate"]),
            str(len(row["seeds"])),
            *line[1:],
        ]
        for row, line in zip(numbers, table.lines, strict=True)
    ]
    return tables.Table(header, lines)


def _markdown(table: tables.Table) -> str:
    return document.table(table.header, table.lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [experiment.config for experiment in EXPERIMENTS]
    parser.add_argument(
        "experiments", nargs="*", help=f"of {', '.join(names)}; by default all"
    )
    asked = parser.parse_args(arguments).experiments or names
    if unknown := set(asked) - set(names):
        parser.error(
            f"no experiment {', '.join(unknown)}; there are {', '.join(names)}"
        )
    chosen = [experiment for experiment in EXPERIMENTS if experiment.config in asked]
    try:
        results = [read(experiment) for experiment in chosen]
    except UserError as error:
        raise SystemExit(str(error)) from None
    artifacts.write_text(PAGE, render(results))
    print(f"wrote {PAGE}")
    if chosen == list(EXPERIMENTS):
        document.write("results", summary(results), README)


if __name__ == "__main__":
    main()
