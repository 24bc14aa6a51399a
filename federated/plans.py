"""What federations would take, without running them: `--dry_run`.

The data are read where they are there; of those that are not, the released sizes
serve. Nothing is put on a device, and no weights are made or read.
"""

import collections
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from federated import advice, experiment
from gptfl_jax import choices, evaluation, planning, trainable, training
from gptfl_jax.data import datasets, federated_data, outline
from gptfl_jax.fl import cohorts, streaming
from gptfl_jax.fl.execution import split_over_clients
from gptfl_jax.launch import prepare
from gptfl_jax.planning import amount
from gptfl_jax.progress import say


def of_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a federation would take."""
    prepare(config)
    experiment.check(config.federated)
    source, lacking = load(config)
    say(planning.table(plan(config, source, lacking)))


def of_runs(configs: Sequence[ConfigDict]) -> None:
    """Says what several would take, those that share their programs together."""
    groups = collections.defaultdict(list)
    source, lacking, options = None, "", None
    for each in configs:
        if source is None or options != each.data.options:
            options, (source, lacking) = each.data.options, load(each)
        key = experiment.shared_by(each, source)
        groups[key].append((each, source, lacking))
    for number, group in enumerate(groups.values(), start=1):
        names = ", ".join(experiment.run_name(each) for each, *_ in group)
        which = f"programs {number} of {len(groups)}, for {len(group)} of "
        say(f"{which}{len(configs)} runs: {names}\n")
        config, source, lacking = group[0]
        experiment.check(config.federated)
        say(planning.table(plan(config, source, lacking, runs=len(group))) + "\n")


def load(config: ConfigDict) -> tuple[datasets.Source, str]:
    """The data of a config, in outline where they are not there; and why."""
    found = []

    def read(*arguments, **options):
        source, lacking = outline.load(*arguments, **options)
        found.append(lacking)
        return source

    return experiment.load(config, read), found[0]


def plan(
    config: ConfigDict, source: datasets.Source, lacking: str = "", runs: int = 1
) -> planning.Plan:
    """What federations with this config take.

    Args:
        source: its data.
        lacking: why these are in outline; empty: they are not.
        runs: how many there are.
    """
    federated = config.federated
    method = experiment.compose(config, source)
    mesh = method.mesh
    example = training.example_of(source.train.inputs)
    variables = jax.eval_shape(method.learner.init, jax.eval_shape(jax.random.key, 0))

    # Who has which example is computed, the examples themselves are not moved.
    bare = source.train._replace(inputs=np.zeros((len(source.train.labels), 0)))
    dealt = _mixed(federated, experiment.deal(config, bare))
    sizes = np.diff(dealt.offsets)
    summary = federated_data.summarise(dealt, source.train.num_classes)
    data, copies, streamed = _placed(federated, source.train.inputs, dealt, mesh)
    lowered = method.algorithm.lower(variables, data, federated.cohort_size)

    sharding = split_over_clients(mesh)
    count = len(source.test.labels)
    tested = evaluation.planned(
        "test examples", source.test.inputs, federated.eval_batch_size, sharding
    )
    test = evaluation.lower(
        method.learner,
        planning.shapes(variables, mesh),
        *tested.arrays,
        source.test.num_classes,
        federated.eval_batch_size,
        sharding,
    )
    training_step, prediction = training.operations(
        method.learner, variables, example, federated.batch_size
    )
    local = experiment.local_training(federated)
    steps = (
        float(np.mean(cohorts.steps_of(local, jnp.asarray(sizes))))
        * federated.cohort_size
    )
    tests = 2 + (federated.rounds - 1) // federated.eval_every
    down, up = (
        federated.cohort_size * size for size in (lowered.bytes_down, lowered.bytes_up)
    )
    parameters = training.number_of_parameters(trainable.whole(variables))
    trained = training.number_of_parameters(variables)
    alone = f", {amount(trained)} trained" if trained < parameters else ""
    shape = " and ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(example))
    facts = [
        (
            "model",
            f"{choices.stem(config.model.name)}, {amount(parameters)} parameters"
            + alone,
        ),
        (
            "data",
            f"{len(source.train.labels):,} training and {count:,} test examples of "
            f"{shape}, {source.train.num_classes} classes"
            + (", streamed a cohort at a time" if streamed else ""),
        ),
        ("partition", str(summary)),
        (
            "rounds",
            f"{federated.rounds:,} of {federated.cohort_size} clients by "
            f"{choices.stem(federated.algorithm)}, {steps:,.0f} local steps of "
            f"{federated.batch_size} examples a round, {tests:,} tests",
        ),
        (
            "sent",
            f"{amount(down, 'B')} down and {amount(up, 'B')} up a round, "
            f"{amount(federated.rounds * (down + up), 'B')} in all",
        ),
    ]
    if text := advice.on_clients(federated, summary):
        facts.insert(3, ("", text))
    if lacking:
        facts.insert(2, ("", f"sizes as released, since it is not there: {lacking}"))
    return planning.Plan(
        f"federated.simulate, {experiment.run_name(config)}",
        facts,
        resident=(
            # The state of one round is kept until it is read, tested and saved.
            planning.Resident("server state", lowered.state, copies=2),
            planning.Resident(
                "clients' examples",
                data,
                "lower config.data.image_size"
                + ", or set config.federated.data_placement='stream'" * (not streamed),
                copies=copies,
                in_place=True,
            ),
            tested,
        ),
        programs=(
            *(
                planning.Program(name, each, _smaller_training(federated))
                for name, each in lowered.programs.items()
            ),
            planning.Program("a test", test, "lower config.federated.eval_batch_size"),
        ),
        work=(
            planning.Work(
                "local steps", training_step, runs * federated.rounds * steps
            ),
            *(
                [
                    planning.Work(
                        f"server's steps of {federated.server_batch_size} examples",
                        training_step
                        * federated.server_batch_size
                        / federated.batch_size,
                        runs * federated.rounds * federated.server_steps,
                    )
                ]
                if federated.server_steps
                else []
            ),
            planning.Work(
                f"tests of {federated.batch_size} examples",
                prediction,
                runs * tests * count / federated.batch_size,
            ),
        ),
    )


def _mixed(
    federated: ConfigDict, dealt: federated_data.FederatedData
) -> federated_data.FederatedData:
    """With room for the synthetic examples that each client gets, of class 0."""
    more = federated.synthetic_per_client
    offsets = dealt.offsets + more * np.arange(len(dealt.offsets), dtype=np.int32)
    labels = np.zeros(more * (len(offsets) - 1), dealt.labels.dtype)
    labels = np.concatenate([dealt.labels, labels])
    return dealt._replace(offsets=offsets, labels=labels)


def _smaller_training(federated: ConfigDict) -> str:
    if federated.client_execution == "packed" or jax.default_backend() == "cpu":
        fewer = ", or start with fewer --cpu_devices" if jax.device_count() > 1 else ""
        return f"lower config.federated.batch_size{fewer}"
    return (
        "lower config.federated.client_lanes, clients side by side on a device (0: "
        "eight, of large networks one), or config.federated.batch_size"
    )


def _placed(federated, inputs, dealt, mesh):
    """(shapes of what a round is given, copies of it, whether it is streamed)."""
    label, example = jax.ShapeDtypeStruct((), np.int32), training.example_of(inputs)
    examples = len(dealt.labels)
    rows = planning.rows((example, label), examples, mesh)
    streamed = experiment.is_streamed(federated, inputs, mesh)
    starts = None
    if streamed:
        sizes = np.diff(dealt.offsets)
        capacity = int(streaming.capacities(sizes, federated.cohort_size)[0])
        rows = planning.rows((example, label), capacity, mesh)
        starts = planning.rows(label, federated.cohort_size, mesh)
    offsets = planning.rows(label, len(dealt.offsets), mesh)
    data = federated_data.FederatedData(*rows, offsets, starts)
    return data, 2 if streamed else 1, streamed
