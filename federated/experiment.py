"""What the config of a federation stands for: data, model, algorithm, cohorts.

`prepare` reads what a run computes with, `deal` gives the clients their examples, and
`make_sampler` draws them. `federated.simulate` has the loop over rounds.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PyTree
from ml_collections import ConfigDict

from federated import starts
from gptfl_jax import (
    augmentation,
    choices,
    configuration,
    devices,
    evaluation,
    families,
    models,
    training,
)
from gptfl_jax.data import (
    datasets,
    federated_data,
    mixing,
    partition,
    sources,
    stored_rows,
    synthetic,
)
from gptfl_jax.data.fingerprint import fingerprint
from gptfl_jax.errors import UserError, refused
from gptfl_jax.fl import composition, personalisation, sampling
from gptfl_jax.fl.execution import clients_mesh, split_over_clients
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.rounds import SERVER, key_of
from gptfl_jax.fl.server_training import (
    ServerStep,
    make_server_step,
    server_training,
)
from gptfl_jax.progress import say

SECTIONS = ("data", "model", "federated")


class Method(NamedTuple):
    """Model and method of a config."""

    learner: training.Learner
    algorithm: composition.Algorithm
    mesh: Mesh | None
    """Devices that cohorts and tests are split over; None for a single one."""
    test_clients: Callable[..., personalisation.ClientCounts]
    """Of `personalisation.make_evaluation`."""


class Setting(NamedTuple):
    """Data, model and method of a config, with their compiled programs.

    Runs for which `shared_by` is equal can use one, so that they compile once; `on`
    changes the data.
    """

    source: datasets.Source
    fingerprint: str
    """Of the source's examples."""
    learner: training.Learner
    algorithm: composition.Algorithm
    mesh: Mesh | None
    """Devices that cohorts and tests are split over; None for a single one."""
    test_inputs: PyTree[Array]
    test_labels: Int32[Array, " examples"]
    test_clients: Callable[..., personalisation.ClientCounts]
    """Of `personalisation.make_evaluation`."""
    server_step: ServerStep
    """Of the server on synthetic examples."""
    flops_of_example: Callable[[], float]
    """Floating-point operations of a gradient, by example."""
    rows: int = 0
    """Rows that the clients' examples are filled up to, for one compiled shape."""
    held_out_rows: int = 0
    """The same of what the clients hold out."""
    synthetic: datasets.Dataset | None = None
    """What stage 1 made, where the method mixes it in."""


def run_name(config: ConfigDict) -> str:
    """Name of a run's folder.

    Raises:
        UserError: it would be longer than file systems take.
    """
    federated = config.federated
    if federated.run:
        return federated.run
    init = starts.short_name(federated.init)
    name = f"{choices.stem(federated.algorithm)}-{init}-s{config.seed}"
    if len(name.encode()) > 255:
        raise UserError(
            "config.federated.init is too long to name the run's folder after: set "
            "config.federated.run"
        )
    return name


def load(
    config: ConfigDict, read: Callable[..., datasets.Source] = sources.load
) -> datasets.Source:
    """Loads the data of a config, by `read`."""
    return read(
        config.data.source,
        config.data.folder,
        image_size=config.data.image_size,
        channels=config.data.channels,
        **config.data.options.to_dict(),
    )


def prepare(config: ConfigDict, source: datasets.Source | None = None) -> Setting:
    """Composes model and algorithm of a config, on its data.

    Args:
        source: what `load(config)` gave; None: loaded here.
    """
    if source is None:
        source = load(config)
    method = compose(config, source)
    return Setting(
        source,
        fingerprint(source.train, source.test),
        method.learner,
        method.algorithm,
        method.mesh,
        *_test_set(source, method.mesh),
        method.test_clients,
        make_server_step(
            method.learner,
            _schedule(config.federated),
            batch_norm=config.federated.batch_norm,
        ),
        functools.cache(
            functools.partial(
                _flops_of_example,
                method.learner,
                training.example_of(source.train.inputs),
                config.federated.batch_size,
            )
        ),
    )


def _flops_of_example(learner: training.Learner, example: PyTree, batch: int) -> float:
    variables = jax.eval_shape(learner.init, jax.eval_shape(jax.random.key, 0))
    gradient, _ = training.operations(learner, variables, example, batch)
    return gradient / batch


def compose(config: ConfigDict, source: datasets.Source) -> Method:
    """Composes model and algorithm of a config, for examples like those of `source`."""
    model = models.create(
        config.model.name, source.train.num_classes, **config.model.options.to_dict()
    )
    learner = training.make_learner(
        model,
        training.example_of(source.train.inputs),
        normalisation=training.Normalisation(source.mean, source.std),
        augmentation=augmentation.from_config("federated", config.federated, source),
        dtype=config.federated.dtype,
        trainable=config.federated.trainable,
    )
    mesh = clients_mesh()
    algorithm = make_algorithm(config.federated, learner, mesh)
    test_clients = personalisation.make_evaluation(
        algorithm,
        learner,
        local_training(config.federated),
        batch_norm=config.federated.batch_norm,
        execution=config.federated.client_execution,
        mesh=mesh,
        lanes=config.federated.client_lanes or 16,
    )
    return Method(learner, algorithm, mesh, test_clients)


def on(setting: Setting, source: datasets.Source) -> Setting:
    """A setting with other data, for which `shared_by` must be equal."""
    if source is setting.source:
        return setting
    inputs, labels = _test_set(source, setting.mesh)
    return setting._replace(
        synthetic=None,
        source=source,
        fingerprint=fingerprint(source.train, source.test),
        test_inputs=inputs,
        test_labels=labels,
    )


def padded_rows(count: int) -> int:
    """`count` rounded up by less than a sixteenth: similar counts become the same."""
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def _test_set(source: datasets.Source, mesh: Mesh | None):
    # On the devices, so that no round has to move it there.
    return evaluation.split_examples(
        source.test.inputs, source.test.labels, split_over_clients(mesh)
    )


def shared_by(config: ConfigDict, source: datasets.Source) -> str:
    """What the programs of `prepare` are made from, as text."""
    fields = {
        "model": configuration.model_identity(config),
        "federated": compiled(config),
    }
    example = training.example_of(source.train.inputs)
    fields["data"] = [
        str(jax.tree.leaves(example)),
        *(source.train.num_classes, source.mean, source.std, source.sounds is None),
    ]
    return json.dumps(fields, sort_keys=True)


def compiled(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.federated` that a program is compiled for, as of JSON."""
    fields = plain(config)["federated"]
    not_compiled = (
        *("run", "init", "init_checkpoint", "client_learning_rate"),
        *("eval_every", "eval_batch_size", "checkpoint_every", "keep_checkpoints"),
        *("client_test_fraction", "personalisation_every", "personalisation_clients"),
        *("data_placement", "synthetic_per_client", "synthetic_allocation"),
        *("server_steps", "server_batch_size", "server_step_rate"),
    )
    for name in not_compiled:
        del fields[name]
    if config.federated.learning_rate_schedule != "cosine":
        del fields["rounds"]
    return fields


def local_training(federated: ConfigDict) -> LocalTraining:
    """How the clients of a config train, at a rate that rounds are told."""
    make = getattr(optax, federated.client_optimizer)
    options = federated.client_options.to_dict()
    return LocalTraining(
        optimizer=lambda rate: make(learning_rate=rate, **options),
        batch_size=federated.batch_size,
        epochs=federated.local_epochs,
        steps=federated.local_steps,
        clip_norm=federated.clip_norm,
        drop_last=federated.drop_last,
        schedule=_schedule(federated),
        local_schedule=_cosine if federated.local_schedule == "cosine" else None,
        local_schedule_steps=federated.local_schedule_steps,
    )


def make_algorithm(
    federated: ConfigDict, learner: training.Learner, mesh: Mesh | None
) -> composition.Algorithm:
    """The algorithm of a config.

    Raises:
        ConfigError: fields that do not go together, as scaffold and Adam.
    """
    combination = choices.bind(
        families.AGGREGATION,
        federated.aggregation,
        federated.aggregation_options.to_dict(),
        weight=federated.weighting,
    )
    return choices.bind(
        families.ALGORITHM,
        federated.algorithm,
        federated.algorithm_options.to_dict(),
        learner=learner,
        local=local_training(federated),
        aggregation=combination,
        execution=federated.client_execution,
        mesh=mesh,
        lanes=federated.client_lanes,
        diagnostics=federated.diagnostics,
        dropout=federated.dropout,
        batch_norm=federated.batch_norm,
    )


def check(federated: ConfigDict) -> None:
    """Composes the algorithm of a config on a learner of one weight.

    Raises:
        ConfigError: as `make_algorithm`; or a client may be in a cohort twice, which
            the algorithm does not take.
    """
    weight = {"params": {"weight": jnp.zeros(())}}
    learner = training.Learner(
        init=lambda key: weight,
        loss=lambda variables, batch, key: (jnp.zeros(()), {}),
        predict=lambda variables, inputs: inputs,
    )
    algorithm = make_algorithm(federated, learner, None)
    if federated.server_steps and not algorithm.aggregates:
        raise refused(
            "federated.server_steps",
            federated.server_steps,
            f"0 for {federated.algorithm}, whose clients never see what the server "
            "has trained",
        )
    if configuration.sampling_repeats(federated) and not composition.takes_repeats(
        algorithm.init(weight, 1)
    ):
        raise refused(
            "federated.sampling",
            federated.sampling,
            f"another for {federated.algorithm}: a client that is twice in a cohort "
            "would change the server's state twice, but its own once",
        )


def after_round(
    config: ConfigDict, setting: Setting
) -> Callable[[composition.ServerState, int], composition.ServerState]:
    """What the server makes of its weights after a round, on synthetic examples."""
    federated, mixed = config.federated, setting.synthetic
    if not federated.server_steps:
        return lambda state, round: state
    return server_training(
        setting.server_step,
        mixed.inputs,
        mixed.labels,
        steps=federated.server_steps,
        batch_size=federated.server_batch_size,
        learning_rate=federated.server_step_rate,
        seed=config.seed,
        key=key_of(config.seed, SERVER),
        streamed=is_streamed(federated, mixed.inputs, setting.mesh),
        mesh=setting.mesh,
    )


def _cosine(done: Array) -> Array:
    """1 at the start, 0 where all is done, and up again beyond, as torch's."""
    return 0.5 * (1 + jnp.cos(jnp.pi * done))


def _schedule(federated: ConfigDict) -> optax.Schedule | None:
    """round -> factor on the clients' learning rate."""
    match federated.learning_rate_schedule:
        case "cosine":
            return optax.cosine_decay_schedule(1.0, federated.rounds)
        case "step":
            return optax.exponential_decay(
                1.0, federated.step_rounds, federated.step_factor, staircase=True
            )
    return None


def mixes(federated: ConfigDict) -> bool:
    """Whether a method trains on synthetic examples, at the clients or the server."""
    return bool(federated.synthetic_per_client or federated.server_steps)


def load_mixed(
    config: ConfigDict, workdir: pathlib.Path, source: datasets.Source
) -> datasets.Dataset | None:
    """The examples of stage 1 for a method that `mixes`; None for another.

    Raises:
        UserError: there are none; the message has the command that makes them.
    """
    if not mixes(config.federated):
        return None
    dataset, report = synthetic.load_synthetic(workdir / "synthetic", source)
    say(f"{report} to mix in")
    return dataset


def deal(
    config: ConfigDict,
    train: datasets.Dataset,
    rows: int = 0,
    mixed: datasets.Dataset | None = None,
) -> federated_data.FederatedData:
    """Deals the training set to the clients, less what they hold out.

    Args:
        rows: of the result at least; those that are no client's are zero.
        mixed: synthetic examples, for `federated.synthetic_per_client`.

    Raises:
        UserError: a cohort would be larger than the number of clients.
    """
    federated = config.federated
    owner, num_clients, held_out = _owners(config, train)
    if mixed is not None and federated.synthetic_per_client:
        data = mixing.mix(
            datasets.select(train, ~held_out),
            owner[~held_out],
            num_clients,
            mixed,
            federated.synthetic_per_client,
            federated.synthetic_allocation,
            config.seed,
        )
    else:
        data = _federate(train, owner, num_clients, ~held_out)
    return _filled_up(data, rows)


def deal_held_out(
    config: ConfigDict, train: datasets.Dataset, rows: int = 0
) -> federated_data.FederatedData:
    """What the clients hold out of their training, of which `deal` gives the rest.

    Args:
        rows: as of `deal`.
    """
    owner, num_clients, held_out = _owners(config, train)
    return _filled_up(_federate(train, owner, num_clients, held_out), rows)


def rows_dealt(config: ConfigDict, train: datasets.Dataset) -> tuple[int, int]:
    """How many rows `deal` and `deal_held_out` give, before they are filled up."""
    federated = config.federated
    if not (federated.client_test_fraction or federated.synthetic_per_client):
        return len(train.labels), 0
    _, num_clients, held_out = _owners(config, train)
    mixed = num_clients * federated.synthetic_per_client
    return int((~held_out).sum()) + mixed, int(held_out.sum())


def _filled_up(
    data: federated_data.FederatedData, rows: int
) -> federated_data.FederatedData:
    """With rows of zeros behind those of the clients."""
    missing = rows - len(data.labels)
    if missing <= 0:
        return data

    def fill(leaf):
        # Of numbers in memory zeros, of those in files a view of one.
        nothing = np.broadcast_to(leaf.dtype.type(0), (missing, *leaf.shape[1:]))
        return stored_rows.join(leaf, nothing)

    inputs, labels = jax.tree.map(fill, (data.inputs, data.labels))
    return data._replace(inputs=inputs, labels=labels)


def _owners(
    config: ConfigDict, train: datasets.Dataset
) -> tuple[np.ndarray, int, np.ndarray]:
    """(client of each example, number of clients, whether the client holds it out)."""
    federated = config.federated
    owner, num_clients = partition.partition(
        federated.partition,
        train,
        federated.num_clients,
        config.seed,
        federated.partition_options.to_dict(),
    )
    configuration.check_cohort(federated, num_clients)
    held_out = federated_data.hold_out(
        owner, federated.client_test_fraction, config.seed
    )
    return owner, num_clients, held_out


def _federate(train, owner, num_clients, chosen):
    if not chosen.all():
        train = datasets.select(train, chosen)
    return federated_data.federate(train, owner[chosen], num_clients)


def is_streamed(federated: ConfigDict, examples: PyTree, mesh: Mesh | None) -> bool:
    """Whether the clients' examples stay on the host.

    Args:
        examples: as the clients have them.
        mesh: devices that they would lie on.
    """
    if federated.data_placement != "auto":
        return federated.data_placement == "stream"
    return not devices.room_for(examples, mesh).enough


def make_sampler(
    federated: ConfigDict, data: federated_data.FederatedData
) -> sampling.Sampler:
    """(key, rounds done) -> the cohort of the next round.

    Raises:
        ConfigError: a cohort that cannot be drawn, as from an availability trace that
            cannot be read or does not fit the clients.
    """
    return choices.bind(
        families.SAMPLING,
        federated.sampling,
        federated.sampling_options.to_dict(),
        num_clients=len(data.offsets) - 1,
        offsets=data.offsets,
        cohort_size=federated.cohort_size,
    )


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it, tuples being lists."""
    return json.loads(json.dumps(config.to_dict()))
