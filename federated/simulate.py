"""Stage 3: federated training on the clients' private data, simulated.

    python -m federated.simulate --config=configs/digits.py --workdir=runs/digits

The training set is dealt to clients (`config.federated.partition`), a cohort is drawn
each round, its clients train locally, and the server combines their updates
(`config.federated.algorithm`, a function of gptfl_jax/fl/algorithms). The weights
start at random, from stage 2 (`init=synthetic`, GPT-FL), from released ones
(`init=weights` for those of `model.weights`, or their file, address or name), or from a
folder of checkpoints.

Everything about a run lies in `<workdir>/federated/<run>/`:

    run.json         command, config, versions
    classifier.json  what `gptfl_jax.load_classifier` needs besides the weights
    partition.json   size and class counts of every client; partition.png shows them
    metrics.jsonl    a line a round; round 0 measures the initial weights
    client_accuracy.json   how the last test of the clients came out for each of them
    checkpoints/     server state, round and key; a run started again goes on from there

A line of metrics.jsonl has `step` (the round), `train_loss`, what was measured about
the clients' updates (`gradient_diversity`, `update_norm_mean`, ...), `dropped` (clients
whose update was not finite), `bytes_up` and `bytes_down` (sums over all rounds so far),
`seconds`, and, every `eval_every` rounds and after the last one, `accuracy`, `macro_f1`
and `loss` on the test set; where clients keep weights of their own (local_only), means
over the clients that have trained, or `personalisation_clients` of them.

Synthetic examples of stage 1 may be mixed in: among each client's own
(`synthetic_per_client`), and in steps that the server takes after each round
(`server_steps`).

With `client_test_fraction` every client holds some of its examples out of its training.
Every `personalisation_every` rounds and after the last one, the same clients are tested
on them, before and after local fine-tuning (gptfl_jax/fl/personalisation.py): the line
then has `client_accuracy_mean`, `client_accuracy_worst_decile`, `client_accuracy_best`
and the same of `personalised_accuracy`. The models of local_only are not fine-tuned any
more: both are of what the clients have.
"""

import contextlib
import hashlib
import pathlib
import shlex
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from federated import advice, experiment, plans, run_files, run_writer, starts
from gptfl_jax import (
    artifacts,
    choices,
    configuration,
    description,
    devices,
    evaluation,
    interruption,
    trackers,
    trainable,
    training,
)
from gptfl_jax.data import federated_data
from gptfl_jax.data.fingerprint import fingerprint
from gptfl_jax.data.partition.from_file import content_of
from gptfl_jax.fl import composition, personalisation, rounds, streaming
from gptfl_jax.fl.execution import place, split_over_clients
from gptfl_jax.launch import agree, launch, prepare
from gptfl_jax.progress import Progress, counted, say

# A run may go on with other values of these: they change what is written or how fast,
# not what is computed.
_FREE_TO_CHANGE = (
    *("run", "rounds", "eval_every", "eval_batch_size"),
    *("checkpoint_every", "keep_checkpoints"),
    *("client_execution", "client_lanes", "data_placement", "diagnostics"),
    *("personalisation_every", "personalisation_clients"),
)


def simulate(
    config: ConfigDict,
    workdir: pathlib.Path,
    setting: experiment.Setting | None = None,
    quiet: bool = False,
    into: pathlib.Path | None = None,
    adviser: advice.Adviser | None = None,
) -> dict[str, Any]:
    """Runs one federation, or what is left of it.

    Args:
        setting: on the config's data, of an earlier run with the same `shared_by`;
            None: a new one.
        quiet: show no more than the progress bar.
        into: the folder of the workdir that its `federated/` is in; None: the workdir.
        adviser: what to say; None: all that there is.

    Returns:
        The last line of its metrics.

    Raises:
        UserError: the config is none, stage 2 is missing, the folder is in use, holds
            another run or has lost lines of metrics.jsonl, or every update of a cohort
            was NaN or infinite.
    """
    prepare(config)
    adviser = adviser or advice.Adviser()
    trackers.check(config)
    starts.released_file(config)  # a download fails before the data are read
    if setting is None:
        experiment.check(config.federated)
        setting = experiment.prepare(config)
    if setting.synthetic is None:
        mixed = experiment.load_mixed(config, workdir, setting.source)
        setting = setting._replace(synthetic=mixed)
    folder = (into or workdir) / "federated" / experiment.run_name(config)
    data = experiment.deal(
        config, setting.source.train, setting.rows, setting.synthetic
    )
    if jax.process_count() > 1:
        agree(
            _digest((data, setting.source.test[:2], _of_server(setting))).encode(),
            "reads other data than process 0: config.data.folder must hold the same "
            "files on all hosts",
        )
    variables = starts.initial_weights(config, workdir, setting.learner)
    with artifacts.lock(folder, workdir):
        identity = _identity(config, setting, variables)
        with artifacts.Checkpoints(
            folder / "checkpoints",
            identity,
            # Of several runs each is called by its method.
            remedy=""
            if quiet
            else "Give this run a name of its own (--config.federated.run=NAME)",
            keep=config.federated.keep_checkpoints,
            best="accuracy",
            translate=_in_todays_words,
        ) as checkpoints:
            start, state = _start(setting, data, variables, checkpoints)
            if start.round is not None and start.round >= config.federated.rounds:
                done = counted(start.round, "round")
                say(f"{folder.name}: {done}, all done", quiet)
            else:
                summary = federated_data.summarise(
                    data, setting.source.train.num_classes
                )
                federated = config.federated
                say(
                    f"{folder.name}: {counted(federated.rounds, 'round')} of "
                    f"{counted(federated.cohort_size, 'client')} by "
                    f"{choices.stem(federated.algorithm)}, init={federated.init}, into "
                    f"{folder}",
                    quiet,
                )
                say(f"{folder.name}: {summary}", quiet)
                adviser.tell(advice.on_clients(config.federated, summary))
                names = setting.source.train.class_names
                adviser.tell(advice.on_classes(config, workdir, names))
                if start.round:
                    say(f"{folder.name}: goes on after round {start.round}", quiet)
                _record(config, folder, setting, summary)
                streamed = _is_streamed(config, data, setting.mesh, quiet)
                _run(
                    *(config, folder, setting, data, summary),
                    *(streamed, checkpoints, start, state),
                    lambda accuracy: adviser.tell(
                        advice.on_start(
                            config, workdir, accuracy, setting.source.test.labels
                        )
                    ),
                )
    done = max(start.round or 0, config.federated.rounds)
    return run_files.read_metrics(folder, done)[-1]


def _identity(
    config: ConfigDict, setting: experiment.Setting, variables: training.Variables
) -> dict[str, Any]:
    """What makes a checkpoint this run's."""
    fields = experiment.plain(config)
    fields = {
        "seed": config.seed,
        **{name: fields[name] for name in experiment.SECTIONS},
    }
    fields["data"] = configuration.data_identity(config, setting.fingerprint)
    fields["model"] = configuration.model_identity(config)
    federated = configuration.in_todays_words(fields["federated"])
    federated = configuration.without_unset(federated)
    fields["federated"] = federated
    for name in _FREE_TO_CHANGE:
        del federated[name]
    if config.federated.partition == "from_file":
        file = config.federated.partition_options.file
        federated["partition_options"] = {"content": content_of(file)}
    if config.federated.learning_rate_schedule == "cosine":
        what = "rounds, over which the cosine schedule lowers the learning rate,"
        federated[what] = config.federated.rounds
    if experiment.mixes(config.federated):
        federated["synthetic examples"] = fingerprint(setting.synthetic)
    if config.federated.init != "random":
        # Stage 2 run again, or another model: the weights say so, not the path.
        federated["initial_weights"] = _digest(variables)
    return fields


def _in_todays_words(identity: dict[str, Any]) -> dict[str, Any]:
    """What an identity of this version or an earlier one says."""
    federated = identity.get("federated")
    if not isinstance(federated, dict):
        return identity
    return {**identity, "federated": configuration.in_todays_words(federated)}


def _of_server(setting: experiment.Setting) -> PyTree:
    """The examples that the server trains on; None: none."""
    return None if setting.synthetic is None else setting.synthetic[:2]


def _digest(tree: PyTree[Array]) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        leaf = np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
        for start in range(0, len(leaf), 1024) if leaf.ndim else ():
            # Of rows in files, no more than these are in memory.
            digest.update(np.ascontiguousarray(leaf[start : start + 1024]))
        if not leaf.ndim:
            digest.update(leaf.tobytes())
    return digest.hexdigest()[:16]


def _start(
    setting: experiment.Setting,
    data: federated_data.FederatedData,
    variables: training.Variables,
    checkpoints: artifacts.Checkpoints,
) -> tuple[run_writer.Done, composition.ServerState]:
    """The state of the last checkpoint, or of round 0."""
    state = setting.algorithm.init(variables, len(data.offsets) - 1)
    round = checkpoints.latest_step()
    if round is None:
        return run_writer.Done(None, 0, 0), state
    packed = ()
    if state.own:
        known = checkpoints.restore({"known_clients": np.int64(0)})
        packed = state.own.packed_like(int(known["known_clients"]))
    saved = checkpoints.restore(
        run_writer.checkpoint(state, packed, run_writer.Done(round, 0, 0))
    )
    start = run_writer.Done(round, int(saved["bytes_up"]), int(saved["bytes_down"]))
    own = state.own.unpack(saved["clients"]) if state.own else ()
    variables = trainable.parted(saved["variables"], state.variables)
    return start, saved["state"]._replace(variables=variables, own=own)


def _is_streamed(
    config: ConfigDict,
    data: federated_data.FederatedData,
    mesh: Mesh | None,
    quiet: bool,
) -> bool:
    """Whether the clients' examples stay on the host; says why it decided so."""
    if config.federated.data_placement != "auto":
        return experiment.is_streamed(config.federated, data, mesh)
    room = devices.room_for(data, mesh)
    streamed = not room.enough
    how = "streamed, a cohort at a time" if streamed else "kept on the device"
    say(
        f"{experiment.run_name(config)}: {room.words(how)} "
        "(config.federated.data_placement)",
        quiet,
    )
    return streamed


def _record(
    config: ConfigDict,
    folder: pathlib.Path,
    setting: experiment.Setting,
    summary: federated_data.Summary,
) -> None:
    """Saves what the run is about to do."""
    flops = starts.operations(config, folder.parent.parent)
    flops |= {
        "example": setting.flops_of_example(),
        "server's round": setting.flops_of_example()
        * config.federated.server_steps
        * config.federated.server_batch_size,
    }
    artifacts.write_run_record(folder, config, flops)
    if jax.process_index() == 0:
        description.describe(
            config.model.name, config.model.options.to_dict(), setting.source
        ).save(folder)
        content = {
            "class_names": setting.source.train.class_names,
            "sizes": summary.sizes,
            "label_counts": summary.histogram,
        }
        artifacts.write_json(folder / "partition.json", content)


def _draw_partition(
    folder: pathlib.Path,
    setting: experiment.Setting,
    summary: federated_data.Summary,
) -> None:
    # Seconds of imports: they pass while the devices compute the first rounds.
    from federated import pictures

    class_names = setting.source.train.class_names
    picture = pictures.partition(summary.histogram, class_names)
    artifacts.write_bytes(folder / "partition.png", pictures.png(picture))


def _run(
    config: ConfigDict,
    folder: pathlib.Path,
    setting: experiment.Setting,
    data: federated_data.FederatedData,
    summary: federated_data.Summary,
    streamed: bool,
    checkpoints: artifacts.Checkpoints,
    start: run_writer.Done,
    state: composition.ServerState,
    tested_start: Callable[[float], None],
) -> None:
    """The rounds that are left: runs them, writes their lines, saves their states.

    Args:
        tested_start: is told the accuracy of the initial weights.
    """
    federated, seed = config.federated, config.seed
    sampler = experiment.make_sampler(config.federated, data)
    given = data if streamed else place(data, setting.mesh)
    test_clients, tested_clients = _client_tests(config, setting, data, given, streamed)

    def observe(
        number: int, state: composition.ServerState, last: bool
    ) -> run_writer.Observed:
        # A run that is told to stop tests no more than one that goes on.
        due = number in (0, federated.rounds)
        tested = due or number % federated.eval_every == 0
        every = federated.personalisation_every
        clients_tested = every and (due or number % every == 0)
        saved = number and (last or number % federated.checkpoint_every == 0)
        return run_writer.Observed(
            _test(config, setting, state) if tested else None,
            test_clients(state, number) if clients_tested else None,
            state if saved else None,
        )

    group = folder.parent.parent.name
    tracking = trackers.start(config, folder, folder.name, group, start.round)
    writer = run_writer.Writer(
        config, folder, checkpoints, start, tested_clients, tracking
    )
    with (
        tracking,
        interruption.deferred("round"),
        Progress(
            federated.rounds, "round", start.round or 0, folder.name, leave=False
        ) as bar,
        contextlib.closing(
            rounds.rounds(
                setting.algorithm.at(federated.client_learning_rate),
                state,
                given,
                lambda done: sampler(rounds.key_of(seed, rounds.COHORTS), done),
                rounds.key_of(seed, rounds.CLIENTS),
                federated.rounds,
                after_round=experiment.after_round(config, setting),
                observe=observe,
                done=start.round,
                stop=interruption.should_save,
                streamed=streamed,
                mesh=setting.mesh,
            )
        ) as results,
    ):
        for result in results:
            if result.number == (start.round or 0) + 1 and jax.process_index() == 0:
                _draw_partition(folder, setting, summary)
                tracking.picture("partition", folder / "partition.png")
            accuracy = writer.write(result, bar)
            if result.number == 0 and accuracy is not None:
                tested_start(accuracy)
        if result.number < federated.rounds:
            checkpoints.wait()
            raise interruption.Interrupted(
                f"{folder.name} is saved after round {result.number} of "
                f"{federated.rounds}; the same command goes on from there"
            )


def _test(
    config: ConfigDict, setting: experiment.Setting, state: composition.ServerState
) -> evaluation.Counts:
    """Of the server's weights; where clients keep their own, of these together."""

    def test(variables: training.Variables) -> evaluation.Counts:
        return evaluation.evaluate_async(
            setting.learner,
            variables,
            setting.test_inputs,
            setting.test_labels,
            setting.source.test.num_classes,
            config.federated.eval_batch_size,
            split_over_clients(setting.mesh),
        )

    most = config.federated.personalisation_clients
    return personalisation.count_models(
        setting.algorithm, state, test, most, config.seed
    )


def _client_tests(
    config: ConfigDict,
    setting: experiment.Setting,
    data: federated_data.FederatedData,
    given: federated_data.FederatedData,
    streamed: bool,
):
    """((state, round) -> counts of the chosen clients, which these are)."""
    if not config.federated.personalisation_every:
        return None, None
    held_out = experiment.deal_held_out(
        config, setting.source.train, setting.held_out_rows
    )
    chosen = personalisation.choose(
        rounds.key_of(config.seed, rounds.TESTED_CLIENTS),
        data.offsets,
        held_out.offsets,
        config.federated.personalisation_clients,
    )

    def on_device(data: federated_data.FederatedData) -> federated_data.FederatedData:
        if not streamed:
            return place(data, setting.mesh)
        with contextlib.closing(streaming.stream(data, [chosen], setting.mesh)) as rows:
            return next(rows)[1]

    held_out = on_device(held_out)
    train = on_device(data) if streamed else given

    def test(
        state: composition.ServerState, round: int
    ) -> personalisation.ClientCounts:
        key = jax.random.fold_in(rounds.key_of(config.seed, rounds.FINE_TUNING), round)
        rate = float(config.federated.client_learning_rate)
        return setting.test_clients(state, train, held_out, chosen, key, rate)

    return test, chosen


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Simulates the federation of a config and says how it ended."""
    last = simulate(config, workdir)
    say(outcome(experiment.run_name(config), last))


def outcome(name: str, last: dict[str, Any]) -> str:
    """A line about the end of a run."""
    dropped = ""
    if last.get("dropped"):
        clients = counted(last["dropped"], "client")
        dropped = f", {clients} dropped in the last round"
    sent = (last["bytes_up"] + last["bytes_down"]) / 1e6
    tested = "not tested"
    if "accuracy" in last:
        tested = (
            f"accuracy {last['accuracy']:.4f}, macro F1 {last['macro_f1']:.4f}, "
            f"loss {last['loss']:.4f}"
        )
    done = counted(last["step"], "round")
    return f"{name}: {tested} after {done}, {sent:,.1f} MB{dropped}"


def then(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The command that shows what has come out."""
    if "report" in config:
        return "python -m federated.report {same}"
    run = shlex.join([f"--workdir={workdir}", f"--run={experiment.run_name(config)}"])
    return f"python -m federated.predict {run} FILE ..."


def main() -> None:
    """Entry point of `python -m federated.simulate` and `gptfl-federated`."""
    launch(run, experiment.SECTIONS, dry_run=plans.of_run, then=then)


if __name__ == "__main__":
    main()
