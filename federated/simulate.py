"""Stage 3: federated training on the clients' private data, simulated.

    python -m federated.simulate --config=configs/digits.py --workdir=runs/digits

The training set is dealt to clients (`config.federated.partition`), a cohort is drawn
each round, its clients train locally, and the server combines their updates
(`config.federated.algorithm`, a function of gptfl_jax/fl/algorithms.py). The weights
start at random, from stage 2 (`init=synthetic`, GPT-FL), or from a folder of
checkpoints.

Everything about a run lies in `<workdir>/federated/<run>/`:

    run.json         command, config, versions
    partition.json   size and class counts of every client
    metrics.jsonl    a line a round; round 0 measures the initial weights
    checkpoints/     server state, round and key; a run started again goes on from there

A line of metrics.jsonl has `step` (the round), `train_loss`, what was measured about
the clients' updates (`gradient_diversity`, `update_norm_mean`, ...), `dropped` (clients
whose update was not finite), `bytes_up` and `bytes_down` (sums over all rounds so far),
`seconds`, and, every `eval_every` rounds and after the last one, `accuracy`, `macro_f1`
and `loss` on the test set.
"""

import collections
import functools
import hashlib
import inspect
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int32, PRNGKeyArray, PyTree
from ml_collections import ConfigDict
from tqdm import tqdm

from gptfl_jax import artifacts, configuration, models, training
from gptfl_jax.configuration import UserError
from gptfl_jax.data import partition, sources
from gptfl_jax.fl import algorithms, clients, sampling
from gptfl_jax.fl.diagnostics import RoundMetrics
from gptfl_jax.launch import agree, launch

SECTIONS = ("data", "model", "federated")

# The streams of draws from the seed; a result depends on these numbers.
_STAGE = 3
_INITIAL_WEIGHTS, _COHORTS, _CLIENTS = range(3)

# A run may go on with other values of these: they change what is written or how fast,
# not what is computed.
_FREE_TO_CHANGE = (
    *("run", "rounds", "eval_every", "eval_batch_size", "checkpoint_every"),
    *("client_execution", "diagnostics"),
)


class CohortFailed(UserError):
    """No update of a cohort was finite."""


class Setting(NamedTuple):
    """Data, model and method of a config, with their compiled programs.

    Runs for which `shared_by(config)` is equal can use one, so that they compile once.
    """

    source: sources.Source
    learner: training.Learner
    algorithm: algorithms.Algorithm
    mesh: Mesh | None
    """Devices that cohorts and tests are split over; None for a single one."""
    test_inputs: PyTree[Array]
    test_labels: Int32[Array, " examples"]


def prepare(config: ConfigDict) -> Setting:
    """Loads the data and composes model and algorithm of a config."""
    source = sources.load(
        config.data.source,
        config.data.folder,
        image_size=config.data.image_size,
        channels=config.data.channels,
        **config.data.options.to_dict(),
    )
    model = models.create(
        config.model.name, source.train.num_classes, **config.model.options.to_dict()
    )
    learner = training.make_learner(
        model,
        training.example_of(source.train.inputs),
        normalisation=training.Normalisation(source.mean, source.std),
        dtype=config.federated.dtype,
    )
    mesh = clients.clients_mesh()
    algorithm = make_algorithm(config.federated, learner, mesh)
    # On every device, so that no round has to move it there.
    test = training.replicate((source.test.inputs, source.test.labels), mesh)
    return Setting(source, learner, algorithm, mesh, *test)


def shared_by(config: ConfigDict) -> str:
    """What `prepare` reads of a config, as text."""
    fields = _plain(config)
    fields = {name: fields[name] for name in SECTIONS}
    not_compiled = (
        *("run", "init", "init_checkpoint"),
        *("eval_every", "eval_batch_size", "checkpoint_every"),
    )
    for name in not_compiled:
        del fields["federated"][name]
    if config.federated.learning_rate_schedule == "constant":
        del fields["federated"]["rounds"]
    return json.dumps(fields, sort_keys=True)


def make_algorithm(
    federated: ConfigDict, learner: training.Learner, mesh: Mesh | None
) -> algorithms.Algorithm:
    """The algorithm of a config: a function of gptfl_jax/fl/algorithms.py, by name."""
    schedule = None
    if federated.learning_rate_schedule == "cosine":
        schedule = optax.cosine_decay_schedule(1.0, federated.rounds)
    local = clients.LocalTraining(
        optimizer=_optimizer(
            federated.client_optimizer,
            federated.client_learning_rate,
            federated.client_options,
        ),
        batch_size=federated.batch_size,
        epochs=federated.local_epochs,
        steps=federated.local_steps,
        clip_norm=federated.clip_norm,
        schedule=schedule,
    )
    function = getattr(algorithms, federated.algorithm)
    settings = {
        "mu": federated.prox_mu,
        "server_optimizer": _optimizer(
            federated.server_optimizer,
            federated.server_learning_rate,
            federated.server_options,
        ),
    }
    takes = inspect.signature(function).parameters
    return function(
        learner,
        local,
        **{name: value for name, value in settings.items() if name in takes},
        weighting=federated.weighting,
        execution=federated.client_execution,
        mesh=mesh,
        diagnostics=federated.diagnostics,
    )


def _optimizer(
    name: str, learning_rate: float, options: ConfigDict
) -> optax.GradientTransformation:
    return getattr(optax, name)(learning_rate=learning_rate, **options.to_dict())


def run_name(config: ConfigDict) -> str:
    """Name of a run's folder."""
    federated = config.federated
    if federated.run:
        return federated.run
    # Weights from a path: runs/other/pretrain/checkpoints is not a name of a folder.
    init = federated.init.strip("/").replace("/", "_")
    return f"{federated.algorithm}-{init}-s{config.seed}"


def initial_weights(
    config: ConfigDict, workdir: pathlib.Path, learner: training.Learner
) -> training.Variables:
    """The weights that a run starts from.

    Of the checkpoints, `federated.init_checkpoint` takes the last or the best. Stage 2
    chooses its best by a validation split of its training set, never by the test set.

    Raises:
      UserError: the checkpoint is missing, or of another model.
    """
    key = _key(config.seed, _INITIAL_WEIGHTS)
    if config.federated.init == "random":
        return learner.init(key)
    folder = pathlib.Path(config.federated.init).expanduser()
    of_workdir = workdir
    if config.federated.init == "synthetic":
        folder = workdir / "pretrain"
    else:
        of_workdir = folder.parent
    if folder.name != "checkpoints":
        folder = folder / "checkpoints"
    artifacts.require(
        folder, f"python -m train.downstream --config=... --workdir={of_workdir}"
    )
    template = {"variables": jax.eval_shape(learner.init, key)}
    step = "best" if config.federated.init_checkpoint == "best" else None
    return artifacts.restore_checkpoint(folder, template, step)["variables"]


def deal(config: ConfigDict, train: sources.Dataset) -> partition.FederatedData:
    """Deals the training set to the clients.

    Raises:
      UserError: a cohort would be larger than the number of clients.
    """
    federated = config.federated
    owner, num_clients = partition.partition(
        federated.partition,
        train,
        federated.num_clients,
        config.seed,
        alpha=federated.alpha,
        min_examples=federated.min_examples,
    )
    configuration.check_cohort(federated.cohort_size, num_clients)
    return partition.federate(train, owner, num_clients)


def simulate(
    config: ConfigDict,
    workdir: pathlib.Path,
    setting: Setting | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs one federation, or what is left of it.

    Args:
      setting: of an earlier run with the same `shared_by(config)`; None: a new one.
      quiet: show no more than the progress bar.

    Returns:
      The last line of its metrics.

    Raises:
      UserError: stage 2 is missing, the folder is in use or holds another run, or every
        update of a cohort was NaN or infinite.
    """
    if setting is None:
        setting = prepare(config)
    folder = workdir / "federated" / run_name(config)
    data = deal(config, setting.source.train)
    if jax.process_count() > 1:
        agree(
            _digest((data, setting.source.test[:2])).encode(),
            "reads other data than process 0: config.data.folder must hold the same "
            "files on all hosts",
        )
    variables = initial_weights(config, workdir, setting.learner)
    with artifacts.lock(folder):
        identity = _identity(config, variables)
        with artifacts.Checkpoints(folder / "checkpoints", identity) as checkpoints:
            start, state = _start(setting, data, variables, checkpoints)
            if start.round is not None and start.round >= config.federated.rounds:
                _say(f"{folder.name}: all {start.round} rounds are done", quiet)
            else:
                summary = partition.summarise(data, setting.source.train.num_classes)
                _say(f"{folder.name}: {summary}", quiet)
                if start.round:
                    _say(f"{folder.name}: goes on after round {start.round}", quiet)
                _record(config, folder, setting, summary)
                _Loop(config, folder, setting, data, checkpoints, start).run(state)
    return artifacts.read_metrics(folder / "metrics.jsonl")[-1]


class _Start(NamedTuple):
    """Where a run begins or goes on."""

    round: int | None
    """Rounds done; None: a new run."""
    bytes_up: int
    bytes_down: int


def _identity(config: ConfigDict, variables: training.Variables) -> dict[str, Any]:
    """What makes a checkpoint this run's."""
    fields = _plain(config)
    fields = {"seed": config.seed, **{name: fields[name] for name in SECTIONS}}
    federated = fields["federated"]
    for name in _FREE_TO_CHANGE:
        del federated[name]
    if config.federated.learning_rate_schedule != "constant":
        federated["rounds"] = config.federated.rounds
    if config.federated.init != "random":
        # Stage 2 run again, or another model: the weights say so, not the path.
        federated["initial_weights"] = _digest(variables)
    return fields


def _digest(tree: PyTree[Array]) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]


def _start(
    setting: Setting,
    data: partition.FederatedData,
    variables: training.Variables,
    checkpoints: artifacts.Checkpoints,
) -> tuple[_Start, algorithms.ServerState]:
    """The state of the last checkpoint, or of round 0."""
    state = setting.algorithm.init(
        training.replicate(variables, setting.mesh), len(data.offsets) - 1
    )
    state = training.replicate(state, setting.mesh)
    round = checkpoints.latest_step()
    if round is None:
        return _Start(None, 0, 0), state
    saved = checkpoints.restore(_checkpoint(state, _Start(round, 0, 0)))
    start = _Start(round, int(saved["bytes_up"]), int(saved["bytes_down"]))
    return start, saved["state"]._replace(variables=saved["variables"])


def _checkpoint(state: algorithms.ServerState, done: _Start) -> dict[str, Any]:
    """All that a run needs to go on; its keys follow from the seed and the round."""
    return {
        # Under the same name as in stage 2's checkpoints, for `init=<folder>`.
        "variables": state.variables,
        "state": state._replace(variables=None),
        "bytes_up": np.int64(done.bytes_up),
        "bytes_down": np.int64(done.bytes_down),
    }


def _say(text: str, quiet: bool = False) -> None:
    if jax.process_index() == 0 and not quiet:
        print(text, flush=True)


def _record(
    config: ConfigDict,
    folder: pathlib.Path,
    setting: Setting,
    summary: partition.Summary,
) -> None:
    """Saves what the run is about to do."""
    artifacts.write_run_record(folder, config)
    if jax.process_index() == 0:
        content = {
            "class_names": setting.source.train.class_names,
            "sizes": summary.sizes,
            "label_counts": summary.histogram,
        }
        artifacts.write_json(folder / "partition.json", content)


class _Pending(NamedTuple):
    """What a round leaves on the device. Read when the next one has been started."""

    round: int
    metrics: RoundMetrics | None
    counts: training.Counts | None
    """Of the test set, where a test is due."""
    state: algorithms.ServerState | None
    """To save, where a checkpoint is due."""


class _Loop:
    """The rounds of one run.

    The device is always a round ahead of the host: while it computes one, the host
    reads, writes and saves what the one before has left.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: pathlib.Path,
        setting: Setting,
        data: partition.FederatedData,
        checkpoints: artifacts.Checkpoints,
        start: _Start,
    ):
        self.config, self.setting, self.checkpoints = config, setting, checkpoints
        self.name, self.start, self.sent = folder.name, start, start
        self.data = clients.place(data, setting.mesh)
        self.num_clients = len(data.offsets) - 1
        self.metrics_file = artifacts.Metrics(
            folder / "metrics.jsonl", resume_after=start.round
        )
        self.clock = time.perf_counter()

    def run(self, state: algorithms.ServerState) -> None:
        federated, seed = self.config.federated, self.config.seed
        draw = functools.partial(
            _draw,
            _key(seed, _COHORTS),
            _key(seed, _CLIENTS),
            num_clients=self.num_clients,
            size=federated.cohort_size,
        )
        pending = collections.deque()
        if self.start.round is None:
            pending.append(_Pending(0, None, self._test(state), None))
        with tqdm(
            total=federated.rounds,
            initial=self.start.round or 0,
            desc=self.name,
            unit="round",
            disable=None if jax.process_index() == 0 else True,
            leave=False,
        ) as bar:
            for done in range(self.start.round or 0, federated.rounds):
                cohort, key = draw(done)
                state, metrics = self.setting.algorithm.round(
                    state, self.data, cohort, key
                )
                number = done + 1
                last = number == federated.rounds
                tested = last or number % federated.eval_every == 0
                saved = last or number % federated.checkpoint_every == 0
                pending.append(
                    _Pending(
                        number,
                        metrics,
                        self._test(state) if tested else None,
                        state if saved else None,
                    )
                )
                while len(pending) > (0 if last else 1):
                    self._finish(pending.popleft(), bar)

    def _test(self, state: algorithms.ServerState) -> training.Counts:
        setting, mesh = self.setting, self.setting.mesh
        return training.evaluate_async(
            setting.learner,
            state.variables,
            setting.test_inputs,
            setting.test_labels,
            setting.source.test.num_classes,
            self.config.federated.eval_batch_size,
            None if mesh is None else NamedSharding(mesh, P(clients.AXIS)),
        )

    def _finish(self, pending: _Pending, bar: tqdm) -> None:
        """Waits for a round, writes its line, and saves where that is due."""
        line = {}
        if pending.metrics is not None:
            line = jax.device_get(pending.metrics)._asdict()
            failed = line.pop("failed")
            if failed:
                raise CohortFailed(self._all_dropped(pending.round, line))
            self.sent = _Start(
                pending.round,
                self.sent.bytes_up + round(float(line.pop("bytes_up"))),
                self.sent.bytes_down + round(float(line.pop("bytes_down"))),
            )
            bar.update()
        line["bytes_up"], line["bytes_down"] = self.sent[1:]
        if pending.counts is not None:
            tested = training.metrics(pending.counts)
            line |= tested._asdict()
            bar.set_postfix_str(f"accuracy {tested.accuracy:.3f}", refresh=False)
        now = time.perf_counter()
        self.metrics_file.write(pending.round, **line, seconds=now - self.clock)
        self.clock = now
        if pending.state is not None:
            # After the line: a run that goes on from here must find it written.
            self.checkpoints.save(pending.round, _checkpoint(pending.state, self.sent))

    def _all_dropped(self, round: int, line: dict[str, Any]) -> str:
        federated = self.config.federated
        return (
            f"{self.name}, round {round}: the updates of all {line['dropped']} clients "
            "were NaN or infinite, so there is nothing to go on with. Lower "
            "config.federated.client_learning_rate "
            f"(now {federated.client_learning_rate:g}) or set "
            "config.federated.clip_norm; metrics.jsonl shows how it came to this"
        )


@functools.partial(jax.jit, static_argnames=("num_clients", "size"))
def _draw(
    cohorts: PRNGKeyArray, clients: PRNGKeyArray, done: int, num_clients: int, size: int
) -> tuple[Int32[Array, " {size}"], PRNGKeyArray]:
    """The cohort and the key of the round after `done` rounds."""
    cohort = sampling.cohort(cohorts, done, num_clients, size)
    return cohort, jax.random.fold_in(clients, done)


def _key(seed: int, stream: int) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STAGE), stream)


def _plain(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it, tuples being lists."""
    return json.loads(json.dumps(config.to_dict()))


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Simulates the federation of a config and says how it ended."""
    last = simulate(config, workdir)
    _say(outcome(run_name(config), last))


def outcome(name: str, last: dict[str, Any]) -> str:
    """A line about the end of a run."""
    dropped = ""
    if last.get("dropped"):
        dropped = f", {last['dropped']} clients dropped in the last round"
    sent = (last["bytes_up"] + last["bytes_down"]) / 1e6
    return (
        f"{name}: accuracy {last['accuracy']:.4f}, macro F1 {last['macro_f1']:.4f}, "
        f"loss {last['loss']:.4f} after {last['step']} rounds, {sent:,.1f} MB{dropped}"
    )


def main() -> None:
    """Entry point of `python -m federated.simulate` and `gptfl-federated`."""
    launch(run, SECTIONS)


if __name__ == "__main__":
    main()
