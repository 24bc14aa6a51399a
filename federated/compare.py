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
seed, initial weights or clients' learning rate share one compiled program. Methods go
by their names, in alphabetical order. Runs that are done are left alone, one that was
interrupted goes on. `federated.report` compares them.

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
import pathlib

from ml_collections import ConfigDict

from federated import experiment, plans, series
from gptfl_jax import configuration
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.launch import launch, prepare


def runs(config: ConfigDict) -> list[ConfigDict]:
    """The configs of all runs, turns outermost and seeds innermost.

    Raises:
        UserError: there is nothing to compare.
        ConfigError: a method has a field that `config.federated` does not take.
    """
    methods = configuration.methods_of(config)
    # A run is of one method: the others are not copied and checked with each.
    bare = copy.deepcopy(config)
    bare.compare.methods, bare.compare.starts = ConfigDict(), ConfigDict()
    named = {}
    for name, _, fields in methods:
        changed = copy.deepcopy(bare)
        for field, value in fields.items():
            if field not in changed.federated:
                raise ConfigError(
                    f"config.compare, method {name}: there is no "
                    f"config.federated.{field}; there are "
                    + ", ".join(sorted(changed.federated))
                )
            configuration.put(changed, f"federated.{field}", value)
        named[name] = changed
    configs = series.in_turns(bare, named)
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
    if config.compare.data:
        series.require_synthetic_only(configs, workdir)
    series.check(configs, workdir)
    failed = series.run(configs, workdir)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}"
        )


def main() -> None:
    """Entry point of `python -m federated.compare` and `gptfl-compare`."""
    launch(
        run,
        (*experiment.SECTIONS, "compare"),
        dry_run=dry_run,
        then=lambda config, _: "python -m federated.report {same}",
    )


if __name__ == "__main__":
    main()
