"""From arrays to a federation in a few lines: what notebooks and scripts call.

    federation = gf.federate(images, labels, owner=writers, test=(x, y))
    run = gf.simulate(federation, "convnet", "fedprox", rounds=30)
    run.metrics, run.plot(), run.predict(images)

`federated.simulate` is the same with a config, files and checkpoints: with the same
settings and seed it computes the same rounds. Each piece can be replaced, and is what
the library is made of: `models`, `fl.algorithms`, `fl.local_training`, `fl.rounds`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import pandas
from jaxtyping import Int, Int32, PyTree, Shaped
from matplotlib.axes import Axes

from gptfl_jax import (
    choices,
    evaluation,
    families,
    models,
    training,
)
from gptfl_jax.classifier import Classifier
from gptfl_jax.data import images
from gptfl_jax.data.datasets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Dataset,
    Sounds,
    Source,
)
from gptfl_jax.data.federated_data import (
    FederatedData,
    Summary,
    summarise,
)
from gptfl_jax.data.federated_data import federate as deal
from gptfl_jax.data.partition import partition as partition_of
from gptfl_jax.data.stored_rows import Rows
from gptfl_jax.description import Description
from gptfl_jax.devices import room_for
from gptfl_jax.errors import UserError
from gptfl_jax.fl import rounds as rounds_of
from gptfl_jax.fl.composition import Algorithm, ServerState
from gptfl_jax.fl.execution import clients_mesh, place, split_over_clients
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.personalisation import count_models
from gptfl_jax.progress import Progress, counted, say
from gptfl_jax.trainable import Trainable, parted, whole

_NONE: Mapping[str, Any] = MappingProxyType({})

Labels = Int[np.ndarray, " examples"]


class Federation(NamedTuple):
    """Clients with their examples, and a test set."""

    data: FederatedData
    """On the host, sorted by client."""
    class_names: tuple[str, ...]
    test: Dataset | None
    mean: tuple[float, ...] = ()
    """Of `training.Normalisation`."""
    std: tuple[float, ...] = ()
    sounds: Sounds | None = None

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.data.offsets) - 1

    @property
    def example(self) -> PyTree[jax.ShapeDtypeStruct]:
        """Shape and type of one raw input."""
        return training.example_of(self.data.inputs)

    def summary(self) -> Summary:
        """Sizes and classes of every client; `print` it for a line of text."""
        return summarise(self.data, len(self.class_names))

    def __repr__(self) -> str:
        return f"Federation({self.summary()}; test={self.test!r})"


def federate(
    inputs: PyTree[Shaped[np.ndarray, "examples ..."]] | Source,
    labels: Sequence[int] | Shaped[np.ndarray, " examples"] | None = None,
    *,
    owner: Sequence[Any] | Shaped[np.ndarray, " examples"] | None = None,
    partition: str = "",
    num_clients: int = 0,
    seed: int = 0,
    test: tuple[PyTree, Int[np.ndarray, " tests"]] | Dataset | None = None,
    class_names: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **options: Any,
) -> Federation:
    """Deals examples to clients.

    Args:
        inputs: arrays whose first axis is the examples (uint8 pictures [examples,
            height, width, channels]; of sounds features and lengths), or a `Source` of
            `gptfl_jax.data.sources.load`, which brings labels, owners and test set.
        labels: of the examples, from 0.
        owner: the client of each example: names or numbers.
        partition: in place of owners: "iid", "dirichlet", ..., or your own file; see
            `gptfl_jax.data.partition`.
        num_clients: of a partition.
        seed: of a partition.
        test: inputs and labels to test on.
        class_names: default: "0", "1", ...
        mean: per channel, which pixels in 0..1 are normalised by; empty: not at all.
            None: ImageNet's for pictures, nothing for other inputs.
        std: likewise.
        options: of the partition, as alpha=0.1.

    Raises:
        UserError: no owners and no partition, an unknown one, or an option it does not
            take.
        ValueError: arrays that do not fit each other.
    """
    sounds = None
    if isinstance(inputs, Source):
        source = inputs
        train, test = source.train, source.test if test is None else test
        mean = source.mean if mean is None else mean
        std = source.std if std is None else std
        sounds = source.sounds
    else:
        if labels is None:
            raise UserError("labels is missing: takes a number from 0 for each example")
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise UserError(
                f"labels are {labels.dtype}: takes whole numbers from 0, as "
                "np.unique(labels, return_inverse=True) makes them, and class_names"
            )
        labels = labels.astype(np.int32)
        names = tuple(class_names) or tuple(map(str, range(int(labels.max()) + 1)))
        train = Dataset(jax.tree.map(np.asarray, inputs), labels, names)
        for leaf in jax.tree.leaves(train.inputs):
            if len(leaf) != len(labels):
                raise ValueError(
                    f"{len(labels):,} labels and {len(leaf):,} inputs: takes one of "
                    "each for every example"
                )
        constants = constants_for(train.inputs)
        mean = constants[0] if mean is None else mean
        std = constants[1] if std is None else std
    if owner is not None:
        train = train._replace(clients=np.asarray(owner))
    if not partition:
        if train.clients is None:
            raise UserError(
                "who owns the examples? Give owner=... (a client for each), or "
                "partition='dirichlet', alpha=0.1, num_clients=100"
            )
        partition = "natural"
    if partition == "natural" and num_clients:
        raise UserError(
            f"num_clients = {num_clients}: goes with a partition, as 'dirichlet' or "
            "'iid'; these clients own their examples"
        )
    if partition != "natural" and num_clients < 1:
        raise UserError("num_clients is missing: takes a whole number from 1")
    owners, count = partition_of(partition, train, num_clients, seed, options)
    if test is not None and not isinstance(test, Dataset):
        test = Dataset(
            jax.tree.map(np.asarray, test[0]),
            np.asarray(test[1], np.int32),
            train.class_names,
        )
    return Federation(
        deal(train, owners, count),
        train.class_names,
        test,
        tuple(map(float, mean)),
        tuple(map(float, std)),
        sounds,
    )


def constants_for(
    inputs: PyTree,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and deviation for uint8 pictures; empty for other inputs."""
    is_picture = isinstance(inputs, Rows) and inputs.dtype == np.uint8
    if not (is_picture and inputs.ndim == 4 and inputs.shape[-1] in (1, 3)):
        return (), ()
    mean, std = (
        tuple(map(float, images.normalisation_for(each, inputs.shape[-1])))
        for each in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return mean, std


class Run(NamedTuple):
    """A federation that has been simulated."""

    name: str
    metrics: pandas.DataFrame
    """A row a round, from round 0 on: `train_loss`, what was measured about the
    clients' updates, `bytes_up` and `bytes_down` (sums over all rounds so far), and
    `accuracy`, `macro_f1` and `loss` where there was a test: of the server's weights,
    or, where each client has its own (local_only), of all clients that have trained."""
    classifier: Classifier
    """With the server's final weights, which local_only leaves as they were: `predict`,
    `probabilities`, `evaluate`, `export`."""
    state: ServerState
    """What the server has after the last round."""

    @property
    def variables(self) -> training.Variables:
        """The final weights, to start another run from (`init`)."""
        return self.classifier.variables

    def __repr__(self) -> str:
        last = self.metrics.iloc[-1]
        tested = f", accuracy {last['accuracy']:.4f}" if "accuracy" in last else ""
        rounds = counted(self.metrics.index[-1], "round")
        return f"Run({self.name}, {rounds}{tested})"

    def predict(self, inputs: PyTree) -> Int32[np.ndarray, " examples"]:
        """The most probable class of each example, of arrays or of files."""
        return self.classifier.predict(inputs)

    def plot(self, metric: str = "accuracy", axes: Axes | None = None) -> Axes:
        """Draws a column of `metrics` over the rounds."""
        return plot([self], metric, axes)


def simulate(
    federation: Federation,
    model: str | nn.Module = "convnet",
    algorithm: str | Callable[..., Algorithm] = "fedavg",
    *,
    rounds: int,
    cohort_size: int = 10,
    local: LocalTraining | None = None,
    init: training.Variables | Classifier | Run | str | None = None,
    seed: int = 0,
    model_options: Mapping[str, Any] = _NONE,
    algorithm_options: Mapping[str, Any] = _NONE,
    sampling: str = "uniform",
    sampling_options: Mapping[str, Any] = _NONE,
    aggregation: str = "mean",
    aggregation_options: Mapping[str, Any] = _NONE,
    augmentation: Callable[[Any, Any], Any] | None = None,
    dtype: str = "float32",
    trainable: Trainable = "all",
    eval_every: int = 1,
    name: str = "",
    progress: bool = True,
) -> Run:
    """Simulates the rounds of a federation.

    Args:
        federation: of `federate`.
        model: a file of `gptfl_jax.models` by name, your own file by path, or a Flax
            Linen module.
        algorithm: a function of `gptfl_jax.fl.algorithms` by name, your own file by
            path, or a function (learner, local, **options) -> `Algorithm`.
        rounds: how many.
        cohort_size: clients a round; all of them where there are fewer.
        local: how clients train; None: an epoch of SGD at 0.1 in batches of 32, which
            is one step of a client with no more examples than that.
        init: weights to start from: variables, a classifier of `train` or
            `load_classifier`, another run, or released ones: a file, an address or a
            name (`models.find_weights`); None: random ones.
        seed: of initial weights, cohorts and local training.
        model_options, algorithm_options, sampling_options, aggregation_options: of the
            choices by name, as their signatures have them.
        sampling: how cohorts are drawn, see `gptfl_jax.fl.samplers`.
        aggregation: how updates are combined, see `gptfl_jax.fl.aggregation`.
        augmentation: as `gptfl_jax.augmentation.Augmentation(flip=True)`.
        dtype: of the computation: float32, bfloat16, float16 or float64.
        trainable: "all" weights, or the last layer ("head") alone, on the features of
            `init`; then nothing else is sent.
        eval_every: rounds between tests, where the federation has a test set.
        name: of the run in plots; default: the algorithm's.
        progress: shows a bar.

    Raises:
        UserError: an unknown choice or option, a start of other classes, or updates
            that are all NaN.
    """
    num_classes = len(federation.class_names)
    about = Description(
        model if isinstance(model, str) else "",
        dict(model_options),
        federation.class_names,
        federation.example,
        federation.mean,
        federation.std,
        federation.sounds.settings if federation.sounds else None,
    )
    if isinstance(model, str):
        model = models.create(model, num_classes, **model_options)
    learner = training.make_learner(
        model,
        federation.example,
        normalisation=training.Normalisation(federation.mean, federation.std),
        augmentation=augmentation,
        dtype=dtype,
        trainable=trainable,
    )
    mesh = clients_mesh()
    local = local or LocalTraining(optax.sgd(0.1), batch_size=32)
    made, called = _algorithm(
        algorithm,
        algorithm_options,
        learner=learner,
        local=local,
        mesh=mesh,
        aggregation=choices.bind(
            families.AGGREGATION,
            aggregation,
            aggregation_options,
            weight="examples",
        ),
    )
    sampler = choices.bind(
        families.SAMPLING,
        sampling,
        sampling_options,
        num_clients=federation.num_clients,
        offsets=federation.data.offsets,
        cohort_size=min(cohort_size, federation.num_clients),
    )
    _require_same_classes(init, federation)
    variables = getattr(init, "variables", init)
    key = rounds_of.key_of(seed, rounds_of.INITIAL_WEIGHTS)
    if isinstance(init, str):
        variables = _released(init, about, whole(learner.init(key)))
        variables = parted(variables, jax.eval_shape(learner.init, key))
    elif variables is None:
        variables = learner.init(key)
    else:
        variables = parted(variables, jax.eval_shape(learner.init, key))
    test = _tester(federation, learner, mesh)

    def observe(number: int, state: ServerState, last: bool):
        due = test and (last or number % eval_every == 0)
        counts = count_models(made, state, test) if due else None
        return counts, state if last else None

    streamed = not room_for(federation.data, mesh).enough
    lines, sent = [], {"bytes_up": 0, "bytes_down": 0}
    with Progress(rounds, "round", name=name or called, shown=progress) as bar:
        for done in rounds_of.rounds(
            made,
            made.init(variables, federation.num_clients),
            federation.data if streamed else place(federation.data, mesh),
            lambda before: sampler(rounds_of.key_of(seed, rounds_of.COHORTS), before),
            rounds_of.key_of(seed, rounds_of.CLIENTS),
            rounds,
            observe=observe,
            streamed=streamed,
            mesh=mesh,
        ):
            line = _line(done, sent, name or called)
            lines.append(line)
            if done.number:
                bar.update()
            elif isinstance(init, Classifier | Run) and "accuracy" in line:
                labels = federation.test.labels
                if found := evaluation.beside_chance(line["accuracy"], labels):
                    say(f"advice: init {found}", quiet=not progress)
            if "accuracy" in line:
                bar.note(f"accuracy {line['accuracy']:.3f}")
            state = done.observed[1]
    if not made.aggregates:
        say(
            "advice: run.classifier has the initial weights; each client's own are in "
            "run.state.own.rows",
            quiet=not progress,
        )
    classifier = Classifier(learner, whole(state.variables), about)
    metrics = pandas.DataFrame(lines).set_index("round")
    return Run(name or called, metrics, classifier, state)


def _require_same_classes(init: Any, federation: Federation) -> None:
    """Refuses a classifier of other classes, whose last layer tells those."""
    classifier = init.classifier if isinstance(init, Run) else init
    if not isinstance(classifier, Classifier):
        return
    theirs, ours = classifier.class_names, federation.class_names
    if theirs != ours:
        raise UserError(
            f"init tells {', '.join(theirs)}, and the federation's classes are "
            f"{', '.join(ours)}: train it on these, or give its weights alone, "
            "init=classifier.variables"
        )


def _released(
    weights: str, about: Description, fresh: training.Variables
) -> training.Variables:
    if not about.model:
        raise UserError(
            f"init={weights!r}: the model was given as an object, and released weights "
            "are found by a model's name: give it by name"
        )
    file = models.find_weights(weights, about.model, **about.options)
    found, of_these_classes = models.load_weights(about.model, fresh, file)
    head = "" if of_these_classes else ", but for the last layer, which is random"
    say(f"initial weights: {weights}{head}")
    return jax.tree.map(jax.numpy.asarray, found)


def _algorithm(
    algorithm: str | Callable[..., Algorithm], options: Mapping[str, Any], **given: Any
) -> tuple[Algorithm, str]:
    """The algorithm, and how to call it."""
    if isinstance(algorithm, str):
        made = choices.bind(families.ALGORITHM, algorithm, options, **given)
        return made, choices.title(choices.find(families.ALGORITHM, algorithm))
    learner, local = given.pop("learner"), given.pop("local")
    function = getattr(algorithm, "func", algorithm)  # of a functools.partial
    return algorithm(learner, local, **options, **given), choices.title(function)


def _tester(federation: Federation, learner: training.Learner, mesh):
    """variables -> counts of the test set, which do not wait; None without one."""
    if federation.test is None:
        return None
    split = split_over_clients(mesh)
    inputs, labels = evaluation.split_examples(
        federation.test.inputs, federation.test.labels, split
    )

    def test(variables: training.Variables) -> evaluation.Counts:
        num_classes = len(federation.class_names)
        return evaluation.evaluate_async(
            learner, variables, inputs, labels, num_classes, sharding=split
        )

    return test


def _line(done: rounds_of.Round, sent: dict[str, int], name: str) -> dict[str, Any]:
    """A row of `Run.metrics`; waits for the round."""
    line: dict[str, Any] = {"round": done.number}
    if done.metrics is not None:
        measured = jax.device_get(done.metrics)._asdict()
        if measured.pop("failed"):
            raise UserError(
                f"{name}, round {done.number}: the updates of all clients were NaN or "
                "infinite, so there is nothing to go on with. Try a lower learning "
                "rate, or LocalTraining(..., clip_norm=1)"
            )
        for way in sent:
            sent[way] += round(float(measured.pop(way)))
        line |= {key: value.item() for key, value in measured.items()}
    line |= sent
    counts = done.observed[0]
    if counts is not None:
        line |= evaluation.metrics(counts)._asdict()
    return line


def plot(
    runs: Sequence[Run], metric: str = "accuracy", axes: Axes | None = None
) -> Axes:
    """Draws a column of the runs' `metrics` over the rounds, a curve a run.

    Args:
        runs: with different names.
        metric: a column, as "accuracy", "train_loss" or "gradient_diversity".
        axes: to draw on; None: a new figure.
    """
    from matplotlib import pyplot, ticker  # window systems, which only plots need

    if axes is None:
        _, axes = pyplot.subplots()
    for run in runs:
        if metric not in run.metrics:
            there = f"takes one of {', '.join(run.metrics.columns)}"
            if metric in evaluation.Metrics._fields:
                there += f"; {run.name} was not tested: its federation has no test="
            raise UserError(f"metric {metric!r}: {there}")
        column = run.metrics[metric].dropna()
        axes.plot(column.index, column.values, label=run.name)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("round")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend()
    return axes
