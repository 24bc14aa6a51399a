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
"""

import copy
import pathlib

import jax
from ml_collections import ConfigDict

from federated import experiment, simulate
from gptfl_jax import configuration
from gptfl_jax.configuration import ConfigError, UserError
from gptfl_jax.data import partition
from gptfl_jax.launch import launch


def runs(config: ConfigDict) -> list[ConfigDict]:
    """The configs of all runs, seeds innermost.

    Raises:
      ConfigError: a method has a field that `config.federated` does not take.
    """
    configs = []
    for name, fields in config.compare.methods.items():
        for seed in config.compare.seeds:
            run = copy.deepcopy(config)
            run.seed = seed
            for field, value in fields.items():
                if field not in run.federated:
                    raise ConfigError(
                        f"config.compare.methods['{name}']['{field}']: there is no "
                        f"config.federated.{field}; there are "
                        + ", ".join(sorted(run.federated))
                    )
                with run.federated.ignore_type():
                    run.federated[field] = value
            run.federated.run = f"{name}-s{seed}"
            configuration.validate(run)
            configs.append(run)
    return configs


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Simulates every method with every seed; one that fails does not stop the others.

    Raises:
      UserError: there is nothing to compare, or some of the runs failed.
    """
    configs = runs(config)
    if not configs:
        raise UserError(
            "config.compare.methods is empty: name at least one method, as in "
            "{'fedavg': {'algorithm': 'fedavg'}}"
        )
    settings: dict[str, experiment.Setting] = {}
    partitions: set[str] = set()
    failed = []
    for number, each in enumerate(configs, start=1):
        name = simulate.run_name(each)
        key = experiment.shared_by(each)
        if key not in settings:
            settings[key] = experiment.prepare(each)
        source = settings[key].source
        dealt = experiment.deal(each, source.train)
        summary = f"seed {each.seed}: " + str(
            partition.summarise(dealt, source.train.num_classes)
        )
        if summary not in partitions:
            partitions.add(summary)
            _say(summary)
        try:
            last = simulate.simulate(each, workdir, settings[key], quiet=True)
        except simulate.CohortFailed as error:
            _say(f"[{number}/{len(configs)}] {error}")
            failed.append(name)
        else:
            _say(f"[{number}/{len(configs)}] {simulate.outcome(name, last)}")
    if failed:
        raise UserError(
            f"{len(failed)} of {len(configs)} runs failed: {', '.join(failed)}"
        )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def main() -> None:
    """Entry point of `python -m federated.compare` and `gptfl-compare`."""
    launch(run, (*experiment.SECTIONS, "compare"))


if __name__ == "__main__":
    main()
