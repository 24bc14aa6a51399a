"""Many federations in one process: what `compare` and `sweep` share.

The start-up is paid once, data are read once, and runs that differ only in their seed,
initial weights or clients' learning rate share one compiled program; they are run one
after another.
"""

import copy
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from federated import advice, experiment, run_files, simulate, starts
from gptfl_jax import artifacts, configuration
from gptfl_jax.data import datasets, federated_data
from gptfl_jax.errors import UserError
from gptfl_jax.progress import counted, interval, say

_WORTH_SAYING_S = 30


def in_turns(config: ConfigDict, named: Mapping[str, ConfigDict]) -> list[ConfigDict]:
    """The configs of all runs, turns outermost and seeds innermost.

    Args:
        config: its `compare.data` and `compare.seeds` say in which turns, with which
            seeds.
        named: what is run, by the names that the folders of the runs begin with.

    Raises:
        ConfigError: one of them is none.
    """
    configs = []
    turns = config.compare.data.items() or [("", {})]
    for (turn, options), (name, changed) in itertools.product(turns, named.items()):
        for seed in config.compare.seeds:
            run = copy.deepcopy(changed)
            run.seed = seed
            with run.data.options.ignore_type():
                for option, value in options.items():
                    run.data.options[option] = value
            run.federated.run = run_name(name, turn, seed)
            configuration.validate(run)
            configs.append(run)
    return configs


def run_name(name: str, turn: str, seed: int) -> str:
    """The folder of a run, of `in_turns`."""
    return f"{name}{f'-{turn}' if turn else ''}-s{seed}"


def check(configs: Sequence[ConfigDict], workdir: pathlib.Path) -> None:
    """Refuses what cannot be run before anything is computed.

    Raises:
        ConfigError: fields that do not go together.
        UserError: weights to start from are missing.
    """
    by_fields = {}
    for each in configs:
        fields = {**experiment.plain(each)["federated"], "run": ""}
        by_fields[json.dumps(fields, sort_keys=True)] = each.federated
    for federated in by_fields.values():
        experiment.check(federated)
    for each in _of_each_start(configs):
        starts.require(each, workdir)


def run(
    configs: Sequence[ConfigDict],
    workdir: pathlib.Path,
    load: Callable[[ConfigDict], datasets.Source] | None = None,
    into: pathlib.Path | None = None,
) -> dict[str, UserError]:
    """Simulates runs, those of one program after another.

    A run that is done is left alone, one that was interrupted goes on, and one that
    fails, or whose data cannot be read, does not stop the others.

    Args:
        configs: of the runs; of equal data together.
        workdir: folder of all stages' files.
        load: reads the data of a config; None: `experiment.load`.
        into: as of `simulate.simulate`.

    Returns:
        why runs failed, by name, of those that did.
    """
    load = load or experiment.load
    of_data = [
        [*group]
        for _, group in itertools.groupby(configs, lambda each: each.data.to_dict())
    ]
    prepared: dict[str, experiment.Setting] = {}
    partitions: set[str] = set()
    adviser = advice.Adviser()
    failed: dict[str, UserError] = {}
    counter = itertools.count(1)
    pace = _Pace(configs, (into or workdir) / "federated")

    def fail(runs: Sequence[ConfigDict], error: UserError) -> None:
        for name in map(experiment.run_name, runs):
            why = str(error).removeprefix(name).removeprefix(", ")
            say(f"[{next(counter)}/{len(configs)}] {name}: {why}")
            failed[name] = error

    for group in of_data:
        try:
            source = load(group[0])
        except UserError as error:
            fail(group, error)
            continue
        # Of the data before only the programs are kept.
        prepared = {
            key: experiment.on(setting, source) for key, setting in prepared.items()
        }
        keys = [experiment.shared_by(each, source) for each in group]
        mixed = None
        for key in dict.fromkeys(keys):
            together = [
                each for each, its in zip(group, keys, strict=True) if its == key
            ]
            try:
                if key not in prepared:
                    prepared[key] = experiment.prepare(together[0], source)
                rows, held_out_rows = _rows(together, source, len(of_data) > 1)
            except UserError as error:
                fail(together, error)
                continue
            for each in together:
                setting = prepared[key]._replace(rows=rows, held_out_rows=held_out_rows)
                try:
                    if mixed is None:
                        mixed = experiment.load_mixed(each, workdir, source)
                    if experiment.mixes(each.federated):
                        setting = setting._replace(synthetic=mixed)
                    dealt = experiment.deal(each, source.train, mixed=mixed)
                    summary = f"seed {each.seed}: " + str(
                        federated_data.summarise(dealt, source.train.num_classes)
                    )
                    if summary not in partitions:
                        partitions.add(summary)
                        say(summary)
                    start = time.monotonic()
                    last = simulate.simulate(
                        *(each, workdir, setting),
                        quiet=True,
                        into=into,
                        adviser=adviser,
                    )
                except UserError as error:
                    fail([each], error)
                else:
                    name = experiment.run_name(each)
                    outcome = simulate.outcome(name, last)
                    left = pace.after(name, time.monotonic() - start)
                    say(f"[{next(counter)}/{len(configs)}] {outcome}{left}")
            if len(of_data) == 1:
                del prepared[key]  # and its memory
    return failed


def _rows(
    configs: Sequence[ConfigDict], source: datasets.Source, several: bool
) -> tuple[int, int]:
    """Rows that the clients' examples, and those held out, are filled up to.

    What a seed holds out differs by a few examples, turns by more: of one shape for all
    runs of a program, it is compiled once.

    Args:
        configs: of runs that share a program.
        several: whether other data come with it.
    """
    counts = [experiment.rows_dealt(each, source.train) for each in configs]
    most = [max(column) for column in zip(*counts, strict=True)]
    if several:
        most = [experiment.padded_rows(count) for count in most]
    return tuple(most)


class _Pace:
    """How many runs are left, and about how long they take.

    Args:
        configs: of all runs.
        root: holds their folders.
    """

    def __init__(self, configs: Sequence[ConfigDict], root: pathlib.Path):
        rounds = {experiment.run_name(each): each.federated.rounds for each in configs}
        self._left = {
            name
            for name, number in rounds.items()
            if run_files.rounds_done(root / name) < number
        }
        self._seconds: list[float] = []
        seeds = sorted({each.seed for each in configs})
        which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
        done = len(rounds) - len(self._left)
        some = f", {done} of them done" if done else ""
        say(f"{counted(len(rounds), 'run')} ({which}){some}: {root}")

    def after(self, name: str, seconds: float) -> str:
        """What to add to the line about a run that has taken so many seconds."""
        if name not in self._left:
            return ""
        self._left.remove(name)
        self._seconds.append(seconds)
        # The first has waited for programs that most of the others share.
        paced = self._seconds[1:]
        if not self._left or not paced:
            return ""
        left = len(self._left) * statistics.mean(paced)
        if left < _WORTH_SAYING_S:
            return ""
        return f"; about {interval(left)} left for {counted(len(self._left), 'run')}"


def require_synthetic_only(
    configs: Sequence[ConfigDict], workdir: pathlib.Path
) -> None:
    """Refuses initial weights that were trained on real data, some of them held out.

    Raises:
        UserError: stage 2 has seen real data.
    """
    for config in _of_each_start(configs):
        folder = starts.checkpoints(config, workdir)
        if folder is None:
            continue
        shape = {"config": {"train?": {"data?": "text"}}}
        remedy = f"delete {folder.parent} and train again"
        try:
            record = artifacts.read_json(folder.parent / "run.json", shape, remedy)
        except FileNotFoundError:
            continue  # of another origin, or missing, which the run will say
        trained = record["config"].get("train", {})
        if trained.get("data", "synthetic") not in ("synthetic", "procedural"):
            raise UserError(
                f"{folder.parent} was trained with config.train.data = "
                f"{trained['data']!r}, hence on examples that are held out here, by a "
                "turn of config.compare.data or as validation: train it on synthetic "
                "data alone"
            )


def _of_each_start(configs: Sequence[ConfigDict]) -> list[ConfigDict]:
    return [*{each.federated.init: each for each in configs}.values()]
