"""Stage 3 for several methods and seeds in one process.

    python -m federated.compare --config=configs/digits.py --workdir=runs/digits

`config.compare.methods` names the methods, each by the fields of `config.federated` in
which it differs from what the config has there:

    config.compare.methods = {
        "fedavg-scratch": {"algorithm": "fedavg", "init": "random"},
        "gptfl": {"algorithm": "fedavg", "init": "synthetic"},
    }

Each is simulated with each seed of `config.compare.seeds`, in
`<workdir>/federated/<method>-s<seed>/`, exactly as federated.simulate would. What this
program saves is time: the start-up is paid once, and methods that differ only in their
seed or initial weights share one compiled program. Methods go by their names, in
alphabetical order. Runs that are done are left alone, one that was interrupted goes on.
`federated.report` compares them.

`config.compare.starts` runs each method from each of several starts, in
`<method>-<start>-s<seed>/`: `{"random": {}, "synthetic": {}, "procedural": {}}`, or
`{"mine": {"init": "weights.safetensors"}}`. What is tuned for a method and a start
stands there too, by the method's name: `{"synthetic": {"fedavg":
{"client_learning_rate": 0.1}}}`.

`config.compare.data` names turns, each by its changes of `config.data.options`: every
speaker held out as the test set in turn, every fold, noise of several levels. Each
method is then run with each seed in each turn, in `<method>-<turn>-s<seed>/`, and the
turns share compiled programs too. One stage 2 serves all of them, provided that it
trained on synthetic data alone: real ones would be test examples of another turn.
"""

import copy
import itertools
import json
import pathlib

from ml_collections import ConfigDict

from federated import experiment, plans, simulate, starts
from gptfl_jax import artifacts, configuration
from gptfl_jax.data import federated_data
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import say


def runs(config: ConfigDict) -> list[ConfigDict]:
    """The configs of all runs, turns outermost and seeds innermost.

    Raises:
        UserError: there is nothing to compare.
        ConfigError: a method has a field that `config.federated` does not take.
    """
    configs = []
    turns = config.compare.data.items() or [("", {})]
    methods = configuration.methods_of(config)
    for (turn, options), (name, _, fields) in itertools.product(turns, methods):
        for seed in config.compare.seeds:
            run = copy.deepcopy(config)
            run.seed = seed
            for field, value in fields.items():
                if field not in run.federated:
                    raise ConfigError(
                        f"config.compare, method {name}: there is no "
                        f"config.federated.{field}; there are "
                        + ", ".join(sorted(run.federated))
                    )
                configuration.put(run, f"federated.{field}", value)
            with run.data.options.ignore_type():
                for option, value in options.items():
                    run.data.options[option] = value
            of_turn = f"-{turn}" if turn else ""
            run.federated.run = f"{name}{of_turn}-s{seed}"
            configuration.validate(run)
            configs.append(run)
    if not configs:
        raise UserError(
            "config.compare.methods is empty: name at least one method, as in "
            "{'fedavg': {'algorithm': 'fedavg'}}"
        )
    return configs


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what all the runs would take."""
    prepare(config)
    plans.of_runs(runs(config))


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Simulates every method with every seed; one that fails does not stop the others.

    Raises:
        UserError: as `runs`; stage 2 has seen what a turn holds out,
            or some of the runs failed.
    """
    prepare(config)
    configs = runs(config)
    by_fields = {}
    for each in configs:
        fields = {**experiment.plain(each)["federated"], "run": ""}
        by_fields[json.dumps(fields, sort_keys=True)] = each.federated
    for federated in by_fields.values():
        experiment.check(federated)
    if config.compare.data:
        for each in {each.federated.init: each for each in configs}.values():
            _require_synthetic_only(each, workdir)
    for each in {each.federated.init: each for each in configs}.values():
        starts.require(each, workdir)
    prepared: dict[str, experiment.Setting] = {}
    source, options, mixed = None, None, None
    partitions: set[str] = set()
    failed = []
    for number, each in enumerate(configs, start=1):
        name = experiment.run_name(each)
        if source is None or options != each.data.options:
            options, source, mixed = each.data.options, experiment.load(each), None
            # Of the turn that is over only the programs are kept.
            prepared = {
                key: experiment.on(setting, source) for key, setting in prepared.items()
            }
        key = experiment.shared_by(each, source)
        if key not in prepared:
            prepared[key] = experiment.prepare(each, source)
        setting = prepared[key]
        if mixed is None:
            mixed = experiment.load_mixed(each, workdir, source)
        if experiment.mixes(each.federated):
            setting = setting._replace(synthetic=mixed)
        dealt = experiment.deal(each, source.train, mixed=mixed)
        if config.compare.data:
            most = max(len(source.train.labels), len(dealt.labels))
            setting = setting._replace(rows=experiment.padded_rows(most))
        summary = f"seed {each.seed}: " + str(
            federated_data.summarise(dealt, source.train.num_classes)
        )
        if summary not in partitions:
            partitions.add(summary)
            say(summary)
        try:
            last = simulate.simulate(each, workdir, setting, quiet=True)
        except simulate.CohortFailed as error:
            say(f"[{number}/{len(configs)}] {error}")
            failed.append(name)
        else:
            say(f"[{number}/{len(configs)}] {simulate.outcome(name, last)}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}"
        )


def _require_synthetic_only(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses initial weights that were trained on real data."""
    folder = starts.checkpoints(config, workdir)
    if folder is None:
        return
    shape = {"config": {"train?": {"data?": "text"}}}
    try:
        record = artifacts.read_json(
            folder.parent / "run.json", shape, f"delete {folder.parent} and train again"
        )
    except FileNotFoundError:
        return  # of another origin, or missing, which the run will say
    trained = record["config"].get("train", {})
    if trained.get("data", "synthetic") not in ("synthetic", "procedural"):
        raise UserError(
            f"{folder.parent} was trained with config.train.data = "
            f"{trained['data']!r}, hence on examples that a turn of "
            "config.compare.data holds out: train it on synthetic data alone"
        )


def main() -> None:
    """Entry point of `python -m federated.compare` and `gptfl-compare`."""
    launch(run, (*experiment.SECTIONS, "compare"), dry_run=dry_run)


if __name__ == "__main__":
    main()
