"""Fields of `config.federated`."""

import inspect

import optax
from ml_collections import ConfigDict

from gptfl_jax import choices, families, rules
from gptfl_jax.configuration.fields import Field, choice
from gptfl_jax.configuration.sections.augmentation import AUGMENTATION
from gptfl_jax.configuration.sections.model import TRAINABLE
from gptfl_jax.errors import ConfigError, refused

FIELDS: dict[str, Field] = {
    "run": Field(
        "",
        rules.FOLDER_NAME_OR_EMPTY,
        "name of the run's folder; empty: <algorithm>-<init>-s<seed>",
        common=True,
    ),
    **choice(
        families.ALGORITHM,
        "fedavg",
        "a function of gptfl_jax/fl/algorithms",
        common=True,
    ),
    "init": Field(
        "random",
        rules.NAME,
        "initial weights: random, synthetic (stage 2's), procedural (stage 2's on "
        "train.data=procedural), weights (those of model.weights), any that "
        "model.weights takes, a checkpoint folder, the name of a run of stage 2, or a "
        "file of your own with a function (variables) -> variables",
        common=True,
    ),
    "init_checkpoint": Field(
        "last",
        rules.one_of("last", "best"),
        "which checkpoint of init: the last, or stage 2's best on its validation split",
    ),
    "rounds": Field(100, rules.whole(1), "federated rounds", common=True),
    "cohort_size": Field(10, rules.whole(1), "clients a round", common=True),
    **choice(
        families.SAMPLING,
        "uniform",
        "how a cohort is drawn: uniform and by_examples (in proportion to a "
        "client's examples; goes with weighting uniform) take different clients, "
        "with_replacement may take one twice, availability draws by a trace of who "
        "can be reached",
    ),
    "dropout": Field(
        0.0,
        rules.number(least=0, below=1),
        "probability that a client of a cohort fails to report",
    ),
    "weighting": Field(
        "examples",
        rules.one_of("examples", "uniform"),
        "weight of a client's update: its examples, or the same for all",
    ),
    **choice(
        families.AGGREGATION,
        "mean",
        "how updates are combined: by weighting (mean), or all alike: clipped to a "
        "norm with Gaussian noise, or robust against outliers",
    ),
    "trainable": TRAINABLE,
    "batch_norm": Field(
        "average",
        rules.one_of("average", "local", "freeze"),
        "batch statistics: averaged, kept by each client with its scales and "
        "biases (FedBN), or as they were sent; for none at all take a model "
        "with norm group",
    ),
    "local_epochs": Field(
        1, rules.whole(1), "passes over a client's data a round", common=True
    ),
    "local_steps": Field(
        0, rules.whole(0), "steps of a client a round in place of epochs; 0: epochs"
    ),
    "batch_size": Field(32, rules.whole(1), "examples a local step", common=True),
    "client_optimizer": Field("sgd", rules.OPTAX_NAME, "optimizer of a client"),
    "client_learning_rate": Field(
        0.1,
        rules.number(above=0),
        "learning rate of a client",
        common=True,
    ),
    "client_options": Field(
        {}, rules.KEYWORDS, "keywords of the client optimizer, as {'momentum': 0.9}"
    ),
    "learning_rate_schedule": Field(
        "constant",
        rules.one_of("constant", "cosine", "step"),
        "the clients' learning rate over the rounds",
    ),
    "step_rounds": Field(
        100, rules.whole(1), "rounds between the steps of learning_rate_schedule step"
    ),
    "step_factor": Field(
        0.1,
        rules.number(above=0, most=1),
        "factor on the learning rate at each of these steps",
    ),
    "local_schedule": Field(
        "constant",
        rules.one_of("constant", "cosine"),
        "the learning rate over a client's steps within a round, on top of that; "
        "the original GPT-FL decays by a cosine in every round",
    ),
    "local_schedule_steps": Field(
        0,
        rules.whole(0),
        "steps after which the cosine of local_schedule is 0; 0: all of a client. The "
        "original takes 100, however many a client has",
    ),
    "clip_norm": Field(
        0.0, rules.number(least=0), "largest norm of a local gradient; 0: not clipped"
    ),
    "drop_last": Field(
        False,
        rules.FLAG,
        "leave out the last, smaller batch of an epoch, unless it is the only one",
    ),
    **choice(
        families.PARTITION,
        "natural",
        "how real examples are dealt to clients: natural as they were recorded; "
        "from_file as a file says; dirichlet by label skew; dirichlet_balanced the "
        "same with similar sizes, as the original; shards a few classes each; "
        "quantity_skew by size alone",
        common=True,
    ),
    "num_clients": Field(
        100,
        rules.whole(1),
        "clients, of partitions that do not say how many there are",
        common=True,
    ),
    "synthetic_per_client": Field(
        0,
        rules.whole(0),
        "examples of <workdir>/synthetic that every client trains on beside its own, "
        "as FedGC; 0: none",
    ),
    "synthetic_allocation": Field(
        "equal",
        rules.one_of("equal", "fill"),
        "classes of these: equal, as many of each; fill, those that a client has "
        "fewest of",
    ),
    "server_steps": Field(
        0,
        rules.whole(0),
        "steps of SGD that the server takes on examples of <workdir>/synthetic after "
        "each round; 0: none",
    ),
    "server_batch_size": Field(32, rules.whole(1), "examples of such a step"),
    "server_step_rate": Field(
        0.1,
        rules.number(above=0),
        "learning rate of such a step, before learning_rate_schedule",
    ),
    "client_test_fraction": Field(
        0.0,
        rules.number(least=0, below=1),
        "share of every client's examples held out of its training, to test it",
    ),
    "personalisation_every": Field(
        0,
        rules.whole(0),
        "rounds between tests of clients on their held-out examples, before and "
        "after local fine-tuning; 0: never",
    ),
    "personalisation_clients": Field(
        100, rules.whole(0), "most clients in such a test, drawn at random; 0: all"
    ),
    "client_execution": Field(
        "auto",
        rules.one_of("auto", "vmap", "packed"),
        "clients side by side (vmap) or end to end (packed); auto: by the backend",
    ),
    "client_lanes": Field(
        0,
        rules.whole(0),
        "clients side by side on a device under vmap; 0: eight, of large "
        "networks one. Fewer need less memory",
    ),
    "data_placement": Field(
        "auto",
        rules.one_of("auto", "device", "stream"),
        "all examples on the device, or each cohort's a round ahead (stream); "
        "auto: stream what would take more than half of the free memory, or on a CPU, "
        "of pictures that are kept decoded on disk, more than a sixteenth. Clients "
        "chosen by personalisation_clients stay on the device",
    ),
    "diagnostics": Field(
        True, rules.FLAG, "gradient diversity and update norms each round"
    ),
    "eval_every": Field(5, rules.whole(1), "rounds between tests", common=True),
    "checkpoint_every": Field(10, rules.whole(1), "rounds between checkpoints"),
    "keep_checkpoints": Field(
        2,
        rules.whole(1),
        "how many of the last checkpoints to keep, besides the one with the best "
        "test accuracy",
    ),
    "eval_batch_size": Field(512, rules.whole(1), "examples at once in a test"),
    **AUGMENTATION["pictures"],
    **AUGMENTATION["sounds"],
    "dtype": Field("float32", rules.DTYPE, "precision of the computation"),
}


def check(config: ConfigDict) -> None:
    """The rules that bind several fields."""
    federated = config.federated
    if federated.init == "weights" and "model" in config and not config.model.weights:
        raise refused(
            "federated.init", federated.init, "another while config.model.weights = ''"
        )
    if choices.takes(families.PARTITION, federated.partition, "num_clients"):
        check_cohort(federated, federated.num_clients)
    if federated.personalisation_every and not federated.client_test_fraction:
        raise refused(
            "federated.personalisation_every",
            federated.personalisation_every,
            "0 while config.federated.client_test_fraction = 0 holds nothing out",
        )
    _check_optimizer_options(
        "federated.client_options",
        federated.client_optimizer,
        federated.client_options,
    )


def sampling_repeats(federated: ConfigDict) -> bool:
    """Whether a client may be in a cohort twice."""
    sampler = choices.find(families.SAMPLING, federated.sampling)
    return getattr(sampler, "may_repeat", False)


def check_cohort(federated: ConfigDict, num_clients: int) -> None:
    """Refuses a cohort of different clients larger than the number there are."""
    if sampling_repeats(federated):
        return
    if federated.cohort_size > num_clients:
        raise refused(
            "federated.cohort_size",
            federated.cohort_size,
            f"at most the number of clients, which is {num_clients}",
        )


def _check_optimizer_options(dotted: str, optimizer: str, options: ConfigDict) -> None:
    taken = [
        name
        for name in inspect.signature(getattr(optax, optimizer)).parameters
        if name != "learning_rate"
    ]
    for name in options.keys():
        if name not in taken:
            raise ConfigError(
                f"config.{dotted}.{name}: optax.{optimizer} takes no such keyword, but "
                + ", ".join(taken)
            )
