r"""Many settings of a federation: a grid, or points drawn from it at random.

    python -m federated.sweep --config=configs/digits.py --workdir=runs/digits \
        --grid federated.init=random,synthetic \
        --grid federated.algorithm=fedavg,fedprox --seeds=5

runs every combination with every seed, and prints which is best: mean accuracy after
the last round, its deviation over seeds, and the mean rank. Beside --config, --workdir:

    --grid FIELD=VALUE,VALUE   what to vary; as often as needed. Options that an
                               algorithm does not take are left out with it
    --seeds N                  seeds 0 to N - 1, where --config.compare.seeds=N is the
                               seed N alone; without it those of compare.seeds
    --search random            draws --trials N points (20) in place of the whole grid;
                               FIELD=LOW..HIGH is then drawn from on a log scale
    --processes N              as many processes, of which each has a GPU of its own;
                               without it one for each GPU that is seen, else one

These stand in the config as well: compare.grid, compare.seeds and compare.trials. Turns
of compare.data are run as federated.compare runs them.

What is chosen must not be chosen by the test set. So a share of the clients' examples,
compare.validation_fraction, takes its place, the same for all points; the test set is
not read. Where the config has a split of its own for this, as `tune=True` in
configs/digits.py and configs/fsdd.py, it is 0: then the config's test set is used.

Runs lie in `<workdir>/sweep/federated/`, and runs of one compiled program follow one
another. A sweep that is started again goes on: what is done is left alone, and more
values, seeds or trials are added. Beside them are sweep.html, with the grid as heat
maps, and sweep.json with all numbers; those of a former sweep of other points are kept,
as sweep-1.html and sweep-1.json.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from federated import experiment, plans, run_writer, series
from federated.sweep import page, results
from federated.sweep.points import Point, axes, points
from gptfl_jax import artifacts
from gptfl_jax.data import datasets
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import counted, say

FOLDER = "sweep"
_MODULE = ("-m", "federated.sweep")
_TRIALS = 20


class Share(NamedTuple):
    """Which part of the runs a process has: `number` of `count`, from 0."""

    number: int = 0
    count: int = 1

    def of(self, configs: Sequence[ConfigDict]) -> list[ConfigDict]:
        """Its runs: neighbours, which share programs; none of a count of 0."""
        if not self.count:
            return []
        begin, end = (
            len(configs) * edge // self.count for edge in (self.number, self.number + 1)
        )
        return [*configs[begin:end]]


_WHOLE = Share()


def runs(config: ConfigDict, found: Sequence[Point]) -> list[ConfigDict]:
    """The configs of all runs, those of one program together.

    Raises:
        ConfigError: a point is no config.
    """
    named = {point.name: point.config for point in found}
    configs = series.in_turns(config, named)
    order: dict[str, int] = {}

    def program(each: ConfigDict) -> tuple[int, int]:
        # Of the program all but the data, which a process has not read yet.
        fields = experiment.plain(each)
        which = [fields["data"], fields["model"]]
        of_data = order.setdefault(json.dumps(which, sort_keys=True), len(order))
        key = json.dumps([which, experiment.compiled(each)], sort_keys=True)
        return of_data, order.setdefault(key, len(order))

    return sorted(configs, key=program)


def held_out(config: ConfigDict) -> datasets.Source:
    """The data of a config, with examples of the clients in place of the test set."""
    source = experiment.load(config)
    fraction = config.compare.validation_fraction
    if not fraction:
        return source
    chosen = datasets.hold_out(
        source.train.labels, fraction, 0, datasets.contents(source.train.inputs)
    )
    if not chosen.any():
        raise UserError(
            "config.compare.validation_fraction: no class has two different examples, "
            "of which to hold one out"
        )
    return source._replace(
        train=datasets.select(source.train, ~chosen),
        test=datasets.select(source.train, chosen),
    )


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what all the runs would take."""
    prepare(config)
    plans.of_runs(runs(config, points(config)))


def run(
    config: ConfigDict, workdir: pathlib.Path, share: Share = _WHOLE
) -> list[dict[str, Any]]:
    """Runs the points that are left, and tabulates all.

    Args:
        config: of the sweep.
        workdir: folder of all stages' files.
        share: of the runs that this process has. One of several tabulates nothing.

    Returns:
        the rows of `results.rows`.

    Raises:
        UserError: the config is none, weights to start from are missing or have seen
            what is held out, runs were refused, the former sweep.json is damaged, or no
            point has all its runs.
    """
    prepare(config)
    found = points(config)
    configs = runs(config, found)
    folder = workdir / FOLDER
    mine = share.of(configs)
    if mine:
        if config.compare.data or config.compare.validation_fraction:
            series.require_synthetic_only(configs, workdir)
        series.check(configs, workdir)
        if share.number == 0:
            many = counted(len(found), "point"), counted(len(configs), "run")
            say(f"{', '.join(many)}; measured on {measured(config)}")
        failed = series.run(mine, workdir, held_out, folder)
        refused = [
            name
            for name, error in failed.items()
            if not isinstance(error, run_writer.CohortFailed)
        ]
        if refused:  # the folders may hold what another config has found
            raise UserError(
                f"{len(refused)} of {len(mine)} runs were refused: "
                f"{', '.join(refused)}. Mend what it says above of each, and the same "
                "command goes on"
            )
    if share.count > 1 or jax.process_index():
        return []
    rows = results.rows(config, found, folder)
    results.keep_former(folder, rows)
    fields = [axis.dotted for axis in axes(config) if len(axis.values) != 1]
    artifacts.write_json(
        folder / "sweep.json",
        {"fields": fields, "measured_on": measured(config), "points": rows},
    )
    artifacts.write_text(
        folder / "sweep.html", page.render(config, rows, fields, measured(config))
    )
    width = shutil.get_terminal_size().columns
    print(f"\n{results.table(rows, fields).text(width)}\n")
    first = results.best(rows)
    print(f"best on {measured(config)}:")
    print("  " + " ".join(options_of(first)) + "\n")
    print(f"page     {folder / 'sweep.html'}")
    print(f"numbers  {folder / 'sweep.json'}", flush=True)
    return rows


def measured(config: ConfigDict) -> str:
    """What accuracies are of, in words."""
    fraction = config.compare.validation_fraction
    if fraction:
        return f"{100 * fraction:g} % of the clients' examples, held out"
    return "the config's test set"


def options_of(row: dict[str, Any]) -> list[str]:
    """The point of a row as flags of federated.simulate."""
    return [
        shlex.quote(f"--config.{field}={value}")
        for field, value in row["values"].items()
    ]


class _Flags(NamedTuple):
    share: Share | None
    processes: int
    rest: list[str]


def _own_flags(argv: Sequence[str]) -> _Flags:
    """Takes this program's flags from a command line; of most come overrides.

    Raises:
        UserError: a flag without a value, or with another than it takes.
    """
    grid: list[str] = []
    texts: dict[str, str] = {}
    rest: list[str] = []
    names = ("seeds", "search", "trials", "processes", "share")
    waiting = iter(argv)
    for argument in waiting:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("--") or name not in ("grid", *names):
            rest.append(argument)
            continue
        if not equals:
            value = next(waiting, "")
        if not value or value.startswith("--"):
            raise UserError(f"--{name} is given no value; see --help")
        if name == "grid":
            grid.append(value)
        else:
            texts[name] = value
    search = texts.get("search", "random" if "trials" in texts else "grid")
    if search not in ("grid", "random"):
        raise UserError(f"--search={search}: takes grid or random")
    if search == "grid" and "trials" in texts:
        raise UserError("--trials: goes with --search=random")
    if grid:
        rest.append(f"--config.compare.grid={tuple(grid)!r}")
    if "seeds" in texts:
        seeds = tuple(range(_whole(texts, "seeds")))
        rest.append(f"--config.compare.seeds={seeds!r}")
    if search == "random":
        rest.append(f"--config.compare.trials={_whole(texts, 'trials', _TRIALS)}")
    share = None
    if "share" in texts:
        share = Share(*map(int, texts["share"].split("/")))
    return _Flags(share, _whole(texts, "processes", 0), rest)


def _whole(texts: dict[str, str], name: str, default: int = 0) -> int:
    value = texts.get(name)
    if value is None:
        return default
    if not value.isdecimal() or not 0 < int(value) < 2**16:
        raise UserError(f"--{name}={value}: takes a whole number from 1")
    return int(value)


def gpus() -> list[str]:
    """The GPUs that CUDA would see, found without starting JAX."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [each for each in named.split(",") if each]
    files = pathlib.Path("/dev").glob("nvidia[0-9]*")
    return sorted((file.name.removeprefix("nvidia") for file in files), key=int)


def _in_processes(argv: Sequence[str], count: int) -> None:
    """Runs shares in as many processes, and waits for them.

    Raises:
        UserError: one has failed.
        SystemExit: they were told to stop.
    """
    there = gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    children = []
    for number in range(count):
        command = [sys.executable, *_MODULE, *argv]
        environment = dict(os.environ)
        if there:
            environment["CUDA_VISIBLE_DEVICES"] = there[number % len(there)]
        elif not any(each.startswith("--cpu_devices") for each in argv):
            command.append(f"--cpu_devices={max(1, cores // count)}")
        command.append(f"--share={number}/{count}")
        children.append(subprocess.Popen(command, env=environment))

    def pass_on(number: int, _: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    # Ctrl-C comes to the children by itself.
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        codes = [child.wait() for child in children]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupted)
    if stopped := [code for code in codes if code in (130, 143)]:
        raise SystemExit(stopped[0])
    if failed := [str(i) for i, code in enumerate(codes) if code]:
        raise UserError(
            f"process {', '.join(failed)} of {count} has failed, as it says above; the "
            "same command goes on from what is done"
        )


def main() -> None:
    """Entry point of `python -m federated.sweep` and `gptfl-sweep`."""
    argv = sys.argv[1:]

    def run_share(config: ConfigDict, workdir: pathlib.Path) -> None:
        flags = _own_flags(argv)
        run(config, workdir, flags.share or _WHOLE)

    try:
        flags = _own_flags(argv)
        several = flags.processes or len(gpus())
        alone = any(each.startswith(("--help", "-h", "--dry_run")) for each in argv)
        if flags.share is None and several > 1 and not alone:
            _in_processes(argv, several)
            # What is left is to tabulate: no device is needed.
            jax.config.update("jax_platforms", "cpu")
            argv = [*argv, "--share=0/0"]
    except UserError as error:
        print(f"federated.sweep: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    launch(
        run_share,
        (*experiment.SECTIONS, "compare"),
        _own_flags(argv).rest,
        dry_run=dry_run,
    )


if __name__ == "__main__":
    main()
