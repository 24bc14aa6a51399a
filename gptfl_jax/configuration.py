"""What a config may hold, and the checks that run before any work starts.

`SCHEMA` is the single statement: every field with its default, what it takes, the test
for that, and its help text. Defaults, validation, command-line parsing and `--help` are
all read from it. A config file builds on it:

    def get_config(arg=""):
        config = configuration.default_config("data", "model", "train")
        config.train.epochs = 50
        return configuration.apply_arguments(config, arg, {"epochs": "train.epochs"})
"""

import ast
import difflib
import inspect
import math
import os
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from gptfl_jax.errors import ConfigError


class Rule(NamedTuple):
    """What a value must be: in words, and as a test."""

    takes: str
    valid: Callable[[Any], bool]


class Field(NamedTuple):
    """One config field: its default, what it takes (words and test), its help text."""

    default: Any
    takes: str
    valid: Callable[[Any], bool]
    help: str


def is_utf8(text: str) -> bool:
    """Whether a text can be written: a name of bytes that are no UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    # NaN and the infinities are numbers to Python; no field of ours takes them.
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return is_real and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int, bits: int = 31) -> Rule:
    """Whole numbers that JAX can count with."""
    return Rule(
        f"a whole number >= {least} and < 2**{bits}",
        lambda value: _is_whole(value) and least <= value < 2**bits,
    )


def _number(
    least: int | None = None,
    above: int | None = None,
    most: int | None = None,
    below: int | float | None = None,
) -> Rule:
    """A finite number: `least` <= it <= `most`, `above` < it < `below`."""
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", least), (">", above), ("<=", most), ("<", below))
        if bound is not None
    ]

    def valid(value: Any) -> bool:
        return (
            _is_number(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )

    return Rule("a number " + " and ".join(bounds), valid)


def _one_of(*names: str) -> Rule:
    takes = "one of " + ", ".join(names)
    return Rule(takes, lambda value: isinstance(value, str) and value in names)


def _tuple_of(rule: Rule, plural: str) -> Rule:
    return Rule(
        f"a list of {plural}",
        lambda value: isinstance(value, tuple | list) and all(map(rule.valid, value)),
    )


def _optax_name(value: Any) -> bool:
    if not isinstance(value, str) or value.startswith("_"):
        return False
    function = getattr(optax, value, None)
    if not inspect.isfunction(function):
        return False
    # optax has schedules and losses as well: only optimizers take a learning rate.
    return "learning_rate" in inspect.signature(function).parameters


def _samples_per_class(value: Any) -> bool:
    if _is_whole(value):
        return 1 <= value <= _MOST_SAMPLES
    if not isinstance(value, str):
        return False
    if value.endswith("x"):
        try:
            return 0 < float(value[:-1]) <= _MOST_SAMPLES
        except ValueError:
            return False
    is_count = value.isascii() and value.isdigit() and len(value) < 10
    return is_count and 1 <= int(value) <= _MOST_SAMPLES


_MOST_SAMPLES = 1_000_000
# File systems take 255 bytes; federated.compare appends turn and seed.
_LONGEST_NAME = 120


def _folder_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and not value.startswith(".")
        and not any(character in "/\\" or ord(character) < 32 for character in value)
        and is_utf8(value)
        and len(value.encode()) <= _LONGEST_NAME
    )


def _is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


_FOLDER_NAME = Rule(
    f"a folder name of at most {_LONGEST_NAME} bytes",
    lambda value: value != "" and _folder_name(value),
)
_TEXT = Rule("text in UTF-8", lambda value: isinstance(value, str) and is_utf8(value))
_NAME = Rule("a name in UTF-8", lambda value: value != "" and _TEXT.valid(value))
_SEED = _whole(0, bits=32)
_IDENTIFIER = Rule(
    "the name of a function",
    lambda value: isinstance(value, str) and value.isidentifier(),
)
_VARIABLE = Rule("the name of an environment variable", _IDENTIFIER.valid)
_FLAG = Rule("True or False", lambda value: isinstance(value, bool))
_NAMES = _tuple_of(_NAME, "names")
_KEYWORDS = Rule(
    "keyword arguments, as in {'name': value}",
    lambda value: (
        isinstance(value, dict | ConfigDict)
        and all(isinstance(key, str) and key.isidentifier() for key in value.keys())
    ),
)
_METHODS = Rule(
    "{'name': {field of config.federated: value}}",
    lambda value: (
        isinstance(value, dict | ConfigDict)
        and all(
            _FOLDER_NAME.valid(name) and isinstance(changes, dict | ConfigDict)
            for name, changes in value.items()
        )
    ),
)
_TURNS = Rule(
    "{'name': {keyword of config.data.options: value}}",
    lambda value: (
        isinstance(value, dict | ConfigDict)
        and all(
            _FOLDER_NAME.valid(name) and bool(options) and _KEYWORDS.valid(options)
            for name, options in value.items()
        )
    ),
)
_MODELS = pkgutil.iter_modules([os.path.join(os.path.dirname(__file__), "models")])
_OPTAX = Rule("the name of an optax optimizer, as sgd or adam", _optax_name)
_DTYPE = _one_of("float32", "bfloat16", "float16", "float64")


def _field(default: Any, rule: Rule, help: str) -> Field:
    return Field(default, rule.takes, rule.valid, help)


# Of `train` and `federated`, by the kind of data they are for.
AUGMENTATION: dict[str, dict[str, Field]] = {
    "pictures": {
        "crop_padding": _field(
            0, _whole(0), "random crops after padding by this many pixels; 0: none"
        ),
        "flip": _field(False, _FLAG, "random horizontal flips"),
        "cutout": _field(
            0, _whole(0), "side in pixels of a random square set to the mean; 0: none"
        ),
        "shift": _field(
            0.0,
            _number(least=0, most=1),
            "random moves up to this share of the side, along each axis",
        ),
        "scale": _field(
            0.0,
            _number(least=0, below=1),
            "random factor on the size, from 1 - scale to 1 + scale",
        ),
        "rotate": _field(
            0.0, _number(least=0, most=180), "random rotations up to this many degrees"
        ),
        "shear": _field(
            0.0,
            _number(least=0, below=90),
            "random horizontal slants up to this many degrees",
        ),
    },
    "sounds": {
        "tempo": _field(
            0.0,
            _number(least=0),
            "random factor on a clip's length, from exp(-tempo) to exp(tempo)",
        ),
        "warp": _field(
            0.0,
            _number(least=0),
            "random factor on the frequency in bands, from exp(-warp) to exp(warp)",
        ),
        "time_shift": _field(0, _whole(0), "random moves up to this many frames"),
        "time_masks": _field(
            0, _whole(0), "random stretches of time that are blanked (SpecAugment)"
        ),
        "time_mask_width": _field(0, _whole(0), "largest width of one in frames"),
        "time_mask_share": _field(
            0.2,
            _number(above=0, most=1),
            "largest width of one as a share of the clip",
        ),
        "frequency_masks": _field(
            0, _whole(0), "random ranges of bands that are blanked (SpecAugment)"
        ),
        "frequency_mask_width": _field(0, _whole(0), "largest width of one in bands"),
    },
}

SCHEMA: dict[str, Field | dict[str, Field]] = {
    "seed": _field(0, _SEED, "the one seed that every random draw starts from"),
    "data": {
        "source": _field(
            "sklearn_digits",
            _IDENTIFIER,
            "the real data: a function of gptfl_jax/data/sources.py",
        ),
        "options": _field({}, _KEYWORDS, "keywords for that function"),
        "folder": _field("", _TEXT, "folder of the data set, where it needs one"),
        "image_size": _field(
            0, _whole(0), "side of an image in pixels; 0: the source's own"
        ),
        "channels": _field(
            0,
            Rule("0, 1 or 3", lambda value: _is_whole(value) and value in (0, 1, 3)),
            "colour channels; 0: the source's own",
        ),
    },
    "model": {
        "name": _field(
            "convnet",
            _one_of(*sorted(module.name for module in _MODELS)),
            "the classifier: a file of gptfl_jax/models",
        ),
        "options": _field({}, _KEYWORDS, "keywords for its Model"),
    },
    "prompts": {
        "method": _field(
            "class_prompt",
            _one_of(
                *("class_prompt", "multi_domain", "multi_speaker", "ucg", "imported"),
                *("commongen", "chat"),
            ),
            "how prompts are made from the class names",
        ),
        "classes": _field((), _NAMES, "class names; empty: those of the data source"),
        "template": _field(
            "",
            _TEXT,
            "sentence with {name} (multi_domain: and {domain}); of commongen and chat: "
            "what the text model is given; empty: the data set's or the method's own",
        ),
        "domains": _field(
            (), _NAMES, "domains of multi_domain; empty: the data set's own"
        ),
        "per_class": _field(
            0,
            _whole(0),
            "most prompts kept for a class, 0: all; of commongen and chat: prompts "
            "that are made for each class, 0: 200",
        ),
        "imported_file": _field(
            "", _TEXT, "prompt lists to import (.pkl or .json), for method imported"
        ),
        "text_model": _field(
            "mrm8488/t5-base-finetuned-common_gen",
            _NAME,
            "T5 model of commongen, of version 1.0 or 1.1: a folder or a hub id",
        ),
        "temperature": _field(
            1.0,
            _number(above=0),
            "of the sentences of commongen and chat: higher is more varied",
        ),
        "top_k": _field(
            50, _whole(0), "commongen keeps to this many likeliest tokens; 0: all"
        ),
        "top_p": _field(
            1.0,
            _number(above=0, most=1),
            "commongen and chat keep to the likeliest tokens of this probability",
        ),
        # The original's 20 count the token that a sentence starts from.
        "max_length": _field(
            19, _whole(1), "tokens of a sentence of commongen at most, its end included"
        ),
        "draws_per_prompt": _field(
            20,
            _whole(1),
            "sentences that commongen and chat draw for each prompt wanted, at most, "
            "before they give a class up",
        ),
        "batch_size": _field(
            64, _whole(1), "sentences that commongen draws at once, over all devices"
        ),
        "dtype": _field(
            "float32",
            _one_of("float32", "bfloat16"),
            "precision of commongen's network",
        ),
        "chat_url": _field(
            "https://api.openai.com/v1",
            Rule("an http or https address", _is_web_address),
            "where chat asks: any endpoint with OpenAI's /chat/completions below it",
        ),
        "chat_model": _field("gpt-4o-mini", _NAME, "the name chat_url knows it by"),
        "chat_key_variable": _field(
            "OPENAI_API_KEY",
            _VARIABLE,
            "environment variable with the key for chat_url; where it is not set, "
            "none is sent",
        ),
        "chat_options": _field(
            {},
            _KEYWORDS,
            "more fields of chat's requests, as {'max_tokens': 60}; None leaves out "
            "one that is sent otherwise (temperature, top_p, seed)",
        ),
        "chat_requests": _field(8, _whole(1), "requests that chat makes at once"),
    },
    "generate": {
        "model": _field(
            "glyphs",
            _NAME,
            "images: a Stable Diffusion shipped here, a diffusers folder or a hub id; "
            "speech: a SpeechT5, likewise, as voices or microsoft/speecht5_tts",
        ),
        "samples_per_class": _field(
            "3x",
            Rule(
                "a whole number from 1 to a million, or such a multiple of the real "
                "count as 3x",
                _samples_per_class,
            ),
            "samples a class: a number, or a multiple of the real training set's count",
        ),
        "num_steps": _field(25, _whole(1), "denoising steps of the solver"),
        "guidance_scale": _field(
            7.5, _number(least=0), "classifier-free guidance; 1: none"
        ),
        "guidance_choices": _field(
            (),
            _tuple_of(_number(least=0), "numbers >= 0"),
            "guidance scales to draw from, one a sample, in place of guidance_scale",
        ),
        "negative_prompt": _field("", _TEXT, "what the pictures should not show"),
        "vocoder": _field(
            "",
            _TEXT,
            "speech: the HiFi-GAN, a folder or a hub id; empty: the model's own (its "
            "folder vocoder/), or microsoft/speecht5_hifigan where it has none",
        ),
        "speaker_vectors": _field(
            "",
            _TEXT,
            "speech: the speakers' voices, a .npy or .zip file, a folder or a hub id; "
            "empty: the model's own (its folder speakers/), or "
            "Matthijs/cmu-arctic-xvectors where it has none",
        ),
        "speakers": _field(
            (),
            _tuple_of(_whole(0), "whole numbers >= 0"),
            "speech: numbers of the speaker vectors to draw from; empty: 0 alone, or "
            "all where prompts.method is multi_speaker",
        ),
        "stop_threshold": _field(
            0.5, _number(above=0), "speech ends where its probability to is this high"
        ),
        "max_seconds": _field(5.0, _number(above=0), "longest clip of speech"),
        "trim_db": _field(
            40.0,
            _number(least=0),
            "speech: ends of a clip this many decibels below its loudest part are "
            "cut off; 0: they stay",
        ),
        "snr_db": _field(
            (),
            _tuple_of(Rule("a number", _is_number), "numbers"),
            "speech: signal-to-noise ratios in decibels to draw from, one a clip, for "
            "white noise; empty: none",
        ),
        "height": _field(0, _whole(0), "pixels; 0: the model's own"),
        "width": _field(0, _whole(0), "pixels; 0: the model's own"),
        "batch_size": _field(64, _whole(1), "samples at once, over all devices"),
        "dtype": _field(
            "float32", _one_of("float32", "bfloat16"), "precision of the networks"
        ),
        "preview_per_class": _field(
            10, _whole(0), "samples of a class on preview.png; 0: no preview"
        ),
    },
    "train": {
        "data": _field(
            "synthetic", _one_of("synthetic", "real", "both"), "what to train on"
        ),
        "epochs": _field(200, _whole(1), "passes over the training set"),
        "batch_size": _field(32, _whole(1), "examples a step, over all devices"),
        "optimizer": _field("adamw", _one_of("adamw", "sgd"), "optimizer"),
        "learning_rate": _field(1e-4, _number(above=0), "peak learning rate"),
        "momentum": _field(0.9, _number(least=0, most=1), "momentum of sgd"),
        "weight_decay": _field(
            5e-4, _number(least=0), "weight decay, decoupled in adamw, L2 in sgd"
        ),
        "schedule": _field(
            "cosine", _one_of("cosine", "constant"), "learning rate over all epochs"
        ),
        "warmup_epochs": _field(
            0.0, _number(least=0), "epochs of linear rise to the peak learning rate"
        ),
        "label_smoothing": _field(
            0.0, _number(least=0, most=1), "share of a label spread over all classes"
        ),
        "clip_norm": _field(
            0.0, _number(least=0), "largest norm of a gradient; 0: not clipped"
        ),
        **AUGMENTATION["pictures"],
        **AUGMENTATION["sounds"],
        "validation_fraction": _field(
            0.1,
            _number(least=0, below=1),
            "share of the training set held out to choose the best checkpoint; "
            "0: the last one is the best",
        ),
        "eval_every": _field(1, _whole(1), "epochs between tests on the real test set"),
        "checkpoint_every": _field(10, _whole(1), "most epochs between checkpoints"),
        "run": _field(
            "pretrain",
            _FOLDER_NAME,
            "name of the folder, in the workdir, that checkpoints and metrics go to",
        ),
        "eval_batch_size": _field(512, _whole(1), "examples at once in a test"),
        "dtype": _field("float32", _DTYPE, "precision of the computation"),
    },
    "federated": {
        "run": _field(
            "",
            Rule(f"{_FOLDER_NAME.takes}, or empty", _folder_name),
            "name of the run's folder; empty: <algorithm>-<init>-s<seed>",
        ),
        "algorithm": _field(
            "fedavg",
            _one_of(
                *("fedavg", "fedavgm", "fedprox", "fedopt", "scaffold", "fednova"),
                *("feddyn", "moon", "local_only"),
            ),
            "a function of gptfl_jax/fl/algorithms",
        ),
        "init": _field(
            "random",
            _NAME,
            "initial weights: random, synthetic (stage 2's), or a checkpoint folder",
        ),
        "init_checkpoint": _field(
            "last",
            _one_of("last", "best"),
            "which checkpoint of init: the last, or stage 2's best on its validation "
            "split",
        ),
        "rounds": _field(100, _whole(1), "federated rounds"),
        "cohort_size": _field(10, _whole(1), "clients a round"),
        "sampling": _field(
            "uniform",
            _one_of("uniform", "with_replacement", "by_examples", "availability"),
            "how a cohort is drawn: uniform and by_examples (in proportion to a "
            "client's examples; goes with weighting uniform) take different clients, "
            "with_replacement may take one twice, availability draws from "
            "availability_file",
        ),
        "availability_file": _field(
            "",
            _TEXT,
            "trace for sampling availability: a .npy of booleans [period, clients]; "
            "round r draws from the clients that are True in row r modulo period",
        ),
        "dropout": _field(
            0.0,
            _number(least=0, below=1),
            "probability that a client of a cohort fails to report",
        ),
        "weighting": _field(
            "examples",
            _one_of("examples", "uniform"),
            "weight of a client's update: its examples, or the same for all",
        ),
        "aggregation": _field(
            "mean",
            _one_of("mean", "clipped_mean", "trimmed_mean", "median"),
            "how updates are combined: by weighting (mean), or all alike: clipped to "
            "update_clip_norm with Gaussian noise, or robust against outliers",
        ),
        "update_clip_norm": _field(
            1.0, _number(above=0), "largest norm of an update under clipped_mean"
        ),
        "noise_multiplier": _field(
            0.0,
            _number(least=0),
            "noise of clipped_mean, as a multiple of update_clip_norm",
        ),
        "trimmed_fraction": _field(
            0.1,
            _number(least=0, below=0.5),
            "share of updates that trimmed_mean cuts at each end of a coordinate",
        ),
        "batch_norm": _field(
            "average",
            _one_of("average", "local", "freeze"),
            "batch statistics: averaged, kept by each client with its scales and "
            "biases (FedBN), or as they were sent; for none at all take a model "
            "with norm group",
        ),
        "prox_mu": _field(0.01, _number(least=0), "proximal weight of fedprox"),
        "fednova_mu": _field(0.0, _number(least=0), "proximal weight of fednova"),
        "feddyn_alpha": _field(
            0.01, _number(least=0), "weight of feddyn's dynamic regulariser"
        ),
        "moon_mu": _field(1.0, _number(least=0), "weight of moon's contrastive term"),
        "moon_temperature": _field(
            0.5, _number(above=0), "temperature of moon's contrastive term"
        ),
        "scaffold_control": _field(
            "path",
            _one_of("path", "start"),
            "control variates of scaffold: from the client's path (option II), or the "
            "gradient where it starts (option I: one more pass over its examples)",
        ),
        "server_momentum": _field(
            0.9, _number(least=0, below=1), "server momentum of fedavgm"
        ),
        "server_optimizer": _field("adam", _OPTAX, "server optimizer of fedopt"),
        "server_learning_rate": _field(
            0.0,
            _number(least=0),
            "learning rate of the server in fedopt, fedavgm and scaffold; "
            "0: 0.001 in fedopt, 1 in the others",
        ),
        "server_options": _field({}, _KEYWORDS, "keywords of the server optimizer"),
        "local_epochs": _field(1, _whole(1), "passes over a client's data a round"),
        "local_steps": _field(
            0, _whole(0), "steps of a client a round in place of epochs; 0: epochs"
        ),
        "batch_size": _field(32, _whole(1), "examples a local step"),
        "client_optimizer": _field("sgd", _OPTAX, "optimizer of a client"),
        "client_learning_rate": _field(
            0.1, _number(above=0), "learning rate of a client"
        ),
        "client_options": _field(
            {}, _KEYWORDS, "keywords of the client optimizer, as {'momentum': 0.9}"
        ),
        "learning_rate_schedule": _field(
            "constant",
            _one_of("constant", "cosine", "step"),
            "the clients' learning rate over the rounds",
        ),
        "step_rounds": _field(
            100, _whole(1), "rounds between the steps of learning_rate_schedule step"
        ),
        "step_factor": _field(
            0.1,
            _number(above=0, most=1),
            "factor on the learning rate at each of these steps",
        ),
        "local_schedule": _field(
            "constant",
            _one_of("constant", "cosine"),
            "the learning rate over a client's steps within a round, on top of that; "
            "the original GPT-FL decays by a cosine in every round",
        ),
        "clip_norm": _field(
            0.0, _number(least=0), "largest norm of a local gradient; 0: not clipped"
        ),
        "drop_last": _field(
            False,
            _FLAG,
            "leave out the last, smaller batch of an epoch, unless it is the only one",
        ),
        "partition": _field(
            "natural",
            _one_of(
                *("natural", "iid", "dirichlet", "dirichlet_balanced", "shards"),
                "quantity_skew",
            ),
            "how real examples are dealt to clients: natural as they were recorded; "
            "dirichlet by label skew; dirichlet_balanced the same with similar sizes, "
            "as the original; shards a few classes each; quantity_skew by size alone",
        ),
        "num_clients": _field(
            100, _whole(1), "clients of every partition but the natural one"
        ),
        "alpha": _field(
            0.1,
            _number(above=0),
            "concentration of the dirichlet partitions and quantity_skew; small: few "
            "labels a client, or few examples",
        ),
        "min_examples": _field(
            1,
            _whole(1),
            "fewest examples of a client of the dirichlet and quantity_skew partitions",
        ),
        "shards_per_client": _field(
            2, _whole(1), "shards of one class a client, in the shards partition"
        ),
        "client_test_fraction": _field(
            0.0,
            _number(least=0, below=1),
            "share of every client's examples held out of its training, to test it",
        ),
        "personalisation_every": _field(
            0,
            _whole(0),
            "rounds between tests of clients on their held-out examples, before and "
            "after local fine-tuning; 0: never",
        ),
        "personalisation_clients": _field(
            100, _whole(0), "most clients in such a test, drawn at random; 0: all"
        ),
        "client_execution": _field(
            "auto",
            _one_of("auto", "vmap", "packed"),
            "clients side by side (vmap) or end to end (packed); auto: by the backend",
        ),
        "client_lanes": _field(
            0,
            _whole(0),
            "clients side by side on a device under vmap; 0: all of them. Fewer need "
            "less memory",
        ),
        "data_placement": _field(
            "auto",
            _one_of("auto", "device", "stream"),
            "all examples on the device, or each cohort's a round ahead (stream); "
            "auto: stream what would take more than half of the free memory. Clients "
            "chosen by personalisation_clients stay on the device",
        ),
        "diagnostics": _field(
            True, _FLAG, "gradient diversity and update norms each round"
        ),
        "eval_every": _field(5, _whole(1), "rounds between tests"),
        "checkpoint_every": _field(10, _whole(1), "rounds between checkpoints"),
        "keep_checkpoints": _field(
            2,
            _whole(1),
            "how many of the last checkpoints to keep, besides the one with the best "
            "test accuracy",
        ),
        "eval_batch_size": _field(512, _whole(1), "examples at once in a test"),
        **AUGMENTATION["pictures"],
        **AUGMENTATION["sounds"],
        "dtype": _field("float32", _DTYPE, "precision of the computation"),
    },
    "compare": {
        "methods": _field(
            {},
            _METHODS,
            "methods that federated.compare runs, by the fields in which they differ",
        ),
        "data": _field(
            {},
            _TURNS,
            "turns: each method is run with each of these changes of data.options, as "
            "{'theo': {'test_speakers': 'theo'}, ...}; empty: with data.options alone",
        ),
        "seeds": _field(
            (0, 1, 2),
            _tuple_of(_SEED, "whole numbers >= 0 and < 2**32"),
            "each method is run with each seed",
        ),
    },
    "report": {
        "runs": _field(
            (), _NAMES, "names of the runs to compare; empty: all there are"
        ),
        "targets": _field(
            (0.9, 0.95),
            _tuple_of(_number(above=0, most=1), "numbers > 0 and <= 1"),
            "accuracies for which rounds and bytes are counted",
        ),
    },
    "text_to_image": {
        "families": _field(
            (), _NAMES, "font families to render; empty: all that are installed"
        ),
        "pen_shapes_per_digit": _field(
            150, _whole(0), "shapes of a digit drawn from pen paths, beside the fonts"
        ),
        "vae_channels": _field(
            (8, 16, 32),
            _tuple_of(_whole(4), "whole numbers >= 4"),
            "channels of the autoencoder, finest resolution first",
        ),
        "latent_channels": _field(4, _whole(1), "channels of the latents"),
        "vae_steps": _field(900, _whole(1), "training steps of the autoencoder"),
        "vae_learning_rate": _field(
            2e-3, _number(above=0), "peak learning rate of the autoencoder"
        ),
        "kl_weight": _field(
            1e-3, _number(least=0), "weight of the latents' KL divergence, by element"
        ),
        "pictures": _field(
            60_000, _whole(1), "pictures rendered and encoded for the denoiser"
        ),
        "unet_channels": _field(
            (48, 96),
            _tuple_of(_whole(16), "whole numbers >= 16"),
            "channels of the denoiser, finest resolution first",
        ),
        "text_features": _field(96, _whole(8), "features of a token"),
        "text_layers": _field(2, _whole(1), "layers of the text encoder"),
        "unet_steps": _field(6200, _whole(1), "training steps of the denoiser"),
        "unet_learning_rate": _field(
            1.5e-3, _number(above=0), "peak learning rate of the denoiser"
        ),
        "empty_prompts": _field(
            0.1,
            _number(least=0, most=1),
            "share of prompts left empty, for classifier-free guidance",
        ),
        "ema_decay": _field(
            0.998, _number(least=0, most=1), "decay of the averaged weights"
        ),
        "batch_size": _field(64, _whole(1), "pictures a step, over all devices"),
        "checkpoint_every": _field(250, _whole(1), "steps between checkpoints"),
        "log_every": _field(25, _whole(1), "steps between lines of metrics.jsonl"),
        "test_samples": _field(
            5000, _whole(0), "samples for the quality measure at the end; 0: none"
        ),
        "test_steps": _field(12, _whole(1), "denoising steps of those samples"),
        "test_guidance_scale": _field(
            2.0, _number(least=0), "guidance of those samples"
        ),
    },
    "text_to_speech": {
        "words": _field((), _NAMES, "words to learn; empty: the 35 of Speech Commands"),
        "engines": _field(
            ("espeak-ng", "flite", "hibari"), _NAMES, "synthesizers that speak them"
        ),
        "max_frames": _field(
            48,
            _whole(2),
            "longer clips are left out; a frame is 16 ms; a multiple of "
            "reduction_factor",
        ),
        "reduction_factor": _field(
            4, _whole(1), "frames that the speech model makes in one step"
        ),
        "features": _field(192, _whole(4), "features of the speech model's layers"),
        "encoder_layers": _field(3, _whole(1), "layers of its text encoder"),
        "decoder_layers": _field(4, _whole(1), "layers of its speech decoder"),
        "postnet_features": _field(
            128, _whole(1), "channels of the convolutions that refine spectrograms"
        ),
        "speaker_features": _field(64, _whole(1), "numbers of a speaker's vector"),
        "speech_steps": _field(12000, _whole(1), "training steps of the speech model"),
        "speech_learning_rate": _field(
            1e-3, _number(above=0), "peak learning rate of the speech model"
        ),
        "vocoder_channels": _field(
            128, _whole(8), "channels of the vocoder before its first upsampling"
        ),
        "segment_frames": _field(
            32, _whole(4), "frames of the segments that the vocoder learns from"
        ),
        "vocoder_batch_size": _field(
            16, _whole(1), "segments a step, over all devices"
        ),
        "vocoder_steps": _field(
            3000, _whole(1), "training steps of the vocoder by spectra alone"
        ),
        "vocoder_learning_rate": _field(
            1e-3, _number(above=0), "peak learning rate of these steps"
        ),
        "adversarial_steps": _field(
            1500, _whole(0), "training steps of the vocoder against discriminators"
        ),
        "adversarial_learning_rate": _field(
            3e-4, _number(above=0), "peak learning rate of these steps"
        ),
        "spectral_weight": _field(
            15.0, _number(least=0), "weight of the spectra in these steps"
        ),
        "ema_decay": _field(
            0.998, _number(least=0, most=1), "decay of the averaged weights"
        ),
        "batch_size": _field(64, _whole(1), "clips a step, over all devices"),
        "checkpoint_every": _field(250, _whole(1), "steps between checkpoints"),
        "log_every": _field(25, _whole(1), "steps between lines of metrics.jsonl"),
        "test_samples": _field(
            3000, _whole(0), "digits for the quality measure at the end; 0: none"
        ),
        "test_epochs": _field(15, _whole(1), "training of that measure's classifiers"),
        "test_folder": _field(
            "", _TEXT, "folder of FSDD, to measure on recordings; empty: not measured"
        ),
    },
}


def fields(*sections: str) -> Iterator[tuple[str, Field]]:
    """All fields with their dotted names, of `sections` (and `seed`), or of all."""
    for name, entry in SCHEMA.items():
        if isinstance(entry, Field):
            yield name, entry
        elif not sections or name in sections:
            for key, field in entry.items():
                yield f"{name}.{key}", field


def default_config(*sections: str) -> ConfigDict:
    """A config of `seed` and the named sections of `SCHEMA`, at their defaults.

    The config is locked: a field that is not in `SCHEMA` cannot be set. Fields of
    keywords (`options`) stay open.
    """
    # `validate` checks types, and says what a field takes.
    config = ConfigDict(type_safe=False)
    for section in sections:
        if not isinstance(SCHEMA.get(section), dict):
            raise unknown(section, known=_sections(), what="section")
        config[section] = ConfigDict(type_safe=False)
    for dotted, field in fields(*sections) if sections else ():
        _store(config, dotted, field.default)
    config.seed = SCHEMA["seed"].default
    return _locked(config)


def apply_arguments(
    config: ConfigDict, arg: str, aliases: dict[str, str]
) -> ConfigDict:
    """Apply a config string to a config.

    Args:
        config: what a config file built.
        arg: `name=value` pairs separated by commas: what follows the colon in
            `--config=configs/digits.py:alpha=0.5,init=random`. May be empty.
        aliases: the names the string may use, and the dotted field each one sets.

    Returns:
        The config itself, changed.

    Raises:
        ConfigError: a name that `aliases` lacks, or a value the field does not take.
    """
    for pair in _split(arg):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise ConfigError(
                f"config string '{pair}': takes name=value pairs separated by commas"
            )
        if name not in aliases:
            raise unknown(name, known=aliases, what="name in the config string")
        set_text(config, aliases[name], value)
    return config


def set_text(config: ConfigDict, dotted: str, text: str) -> None:
    """Set a field of a config from text, as the command line gives it.

    `dotted` is a field of `SCHEMA` ("federated.alpha") or a keyword below a field of
    keywords ("federated.client_options.momentum").

    Raises:
        ConfigError: no such field, or a value that it does not take.
    """
    parent, _, keyword = dotted.rpartition(".")
    field = _find(parent) if _find(dotted) is None else None
    if field is not None and field.takes == _KEYWORDS.takes:
        if not keyword.isidentifier():
            raise ConfigError(f"config.{dotted}: {keyword!r} is not a keyword")
        _require_section(config, parent)
        get(config, parent)[keyword] = _literal(text)
        return
    field = _find(dotted)
    if field is None:
        if dotted in _sections():
            names = ", ".join(name for name, _ in fields(dotted) if "." in name)
            raise ConfigError(f"config.{dotted} is a section; its fields are {names}")
        raise unknown(
            dotted, known=[name for name, _ in fields(*_present(config))], prefix=True
        )
    _require_section(config, dotted)
    _store(config, dotted, _parse(dotted, field, text))


def validate(config: ConfigDict) -> None:
    """Check every field of a config, and the fields against each other.

    Raises:
        ConfigError: an unknown section or field, a missing field, or a value out of
            range. The message names the field and says what it takes.
    """
    known = dict(fields())
    for name in config.keys():
        entry = SCHEMA.get(name)
        if entry is None:
            raise unknown(name, known=SCHEMA, what="section", prefix=True)
        if isinstance(entry, Field):
            continue
        if not isinstance(config[name], ConfigDict):
            raise ConfigError(f"config.{name} = {config[name]!r}: takes a section")
        for key in config[name].keys():
            if f"{name}.{key}" not in known:
                raise unknown(f"{name}.{key}", known=known, prefix=True)
    for dotted, field in fields(*_present(config)):
        section, _, key = dotted.rpartition(".")
        holder = config[section] if section else config
        if key not in holder:
            raise ConfigError(f"config.{dotted} is missing: takes {field.takes}")
        if not field.valid(holder[key]):
            raise _refused(dotted, holder[key], field.takes)
    _check_together(config)


# Options of sources that say where files lie or come from, not what is in them.
_OF_PLACES = ("cache", "download")


def data_identity(config: ConfigDict, fingerprint: str) -> dict[str, Any]:
    """What of `config.data` a run belongs to: all but places, and what lies there."""
    data = config.data.to_dict()
    del data["folder"]
    data["options"] = {k: v for k, v in data["options"].items() if k not in _OF_PLACES}
    return {**data, "content": fingerprint}


def _check_together(config: ConfigDict) -> None:
    """The rules that bind several fields."""
    if "prompts" in config:
        prompts = config.prompts
        if prompts.method == "imported" and not prompts.imported_file:
            raise _refused(
                "prompts.imported_file", "", "a file, when prompts.method is imported"
            )
        if prompts.template and "{name}" not in prompts.template:
            raise _refused(
                "prompts.template", prompts.template, "a sentence with {name} in it"
            )
    if "generate" in config:
        generate = config.generate
        if (generate.height == 0) != (generate.width == 0):
            raise ConfigError(
                f"config.generate.height = {generate.height} with config.generate.width"
                f" = {generate.width}: takes both or neither"
            )
    if "text_to_speech" in config:
        speech = config.text_to_speech
        if speech.max_frames % speech.reduction_factor:
            raise _refused(
                "text_to_speech.max_frames",
                speech.max_frames,
                "a multiple of config.text_to_speech.reduction_factor = "
                f"{speech.reduction_factor}",
            )
        if speech.segment_frames > speech.max_frames:
            raise _refused(
                "text_to_speech.segment_frames",
                speech.segment_frames,
                f"at most config.text_to_speech.max_frames = {speech.max_frames}",
            )
    if "train" in config and config.train.warmup_epochs > config.train.epochs:
        raise _refused(
            "train.warmup_epochs",
            config.train.warmup_epochs,
            f"at most config.train.epochs = {config.train.epochs}",
        )
    if "federated" in config:
        federated = config.federated
        if federated.partition != "natural":
            check_cohort(federated, federated.num_clients)
        own_state = federated.algorithm in ("scaffold", "feddyn")
        if federated.sampling == "with_replacement" and own_state:
            raise _refused(
                "federated.sampling",
                federated.sampling,
                f"another for {federated.algorithm}: a client that is twice in a "
                "cohort would change the server's state twice, but its own once",
            )
        if federated.sampling == "availability" and not federated.availability_file:
            raise _refused(
                "federated.availability_file", "", "a file, for sampling availability"
            )
        if federated.personalisation_every and not federated.client_test_fraction:
            raise _refused(
                "federated.personalisation_every",
                federated.personalisation_every,
                "0 while config.federated.client_test_fraction = 0 holds nothing out",
            )
        for side in ("client", "server"):
            _check_optimizer_options(
                f"federated.{side}_options",
                federated[f"{side}_optimizer"],
                federated[f"{side}_options"],
            )
    if "compare" in config and "federated" in config:
        for name, changes in config.compare.methods.items():
            _check_method(config, name, changes)


def _check_method(config: ConfigDict, name: str, changes: ConfigDict) -> None:
    """Check the federated section that a method of `compare` makes."""
    method = ConfigDict({"seed": config.seed, "federated": config.federated.to_dict()})
    for key, value in changes.items():
        dotted = f"federated.{key}"
        if _find(dotted) is None:
            known = [field for field, _ in fields("federated")]
            raise unknown(f"compare.methods.{name}.{key}", known, prefix=True)
        _store(method, dotted, value)
    try:
        validate(method)
    except ConfigError as error:
        raise ConfigError(f"config.compare.methods.{name}: {error}") from None


def check_cohort(federated: ConfigDict, num_clients: int) -> None:
    """Refuse a cohort of different clients larger than the number there are."""
    if federated.sampling == "with_replacement":
        return
    if federated.cohort_size > num_clients:
        raise _refused(
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


def _sections() -> list[str]:
    return [name for name, entry in SCHEMA.items() if not isinstance(entry, Field)]


def _present(config: ConfigDict) -> list[str]:
    """The sections that a config has; never empty, so that `fields` is not "all"."""
    return [name for name in config.keys() if name in SCHEMA] or ["seed"]


def _find(dotted: str) -> Field | None:
    return dict(fields()).get(dotted)


def get(config: ConfigDict, dotted: str) -> Any:
    """The value of a field by its dotted name."""
    for name in dotted.split("."):
        config = config[name]
    return config


def _require_section(config: ConfigDict, dotted: str) -> None:
    section, dot, _ = dotted.partition(".")
    if dot and section not in config:
        raise ConfigError(f"config.{dotted}: this config has no section `{section}`")


def _store(config: ConfigDict, dotted: str, value: Any) -> None:
    section, _, key = dotted.rpartition(".")
    holder = config[section] if section else config
    if isinstance(value, dict):
        value = ConfigDict(value)
    elif isinstance(value, list):
        value = tuple(value)
    with holder.ignore_type():
        holder[key] = value


def _locked(config: ConfigDict) -> ConfigDict:
    config.lock()
    for dotted, field in fields(*_present(config)):
        if isinstance(field.default, dict):
            get(config, dotted).unlock()
    return config


def _literal(text: str) -> Any:
    """The value a text stands for: a Python literal, or else the text itself."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text  # the last two: thousands of brackets


def _parse(dotted: str, field: Field, text: str) -> Any:
    """The first reading of `text` that the field takes."""
    value = _literal(text)
    readings = [value, text]
    if isinstance(field.default, tuple):
        # --config.report.runs=a,b and =a need no quotes, brackets or closing comma.
        parts = _split(text)
        readings = [value, tuple(map(_literal, parts)), tuple(parts)]
    for reading in readings:
        if field.valid(reading):
            is_float = isinstance(field.default, float)
            return float(reading) if is_float else reading
    raise _refused(dotted, value, field.takes)


def _split(text: str) -> list[str]:
    """Split at the commas that stand outside brackets and quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _refused(dotted: str, value: Any, takes: str) -> ConfigError:
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    return ConfigError(f"config.{dotted} = {_shown(value)}: takes {takes}")


def _shown(value: Any) -> str:
    """A value as a message shows it, not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 160 else f"{text[:140]}... ({len(text):,} characters)"


def unknown(
    name: str, known: Iterable[str], what: str = "field", prefix: bool = False
) -> ConfigError:
    """The error for a name that is none of `known`: it offers the nearest, or all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not near:
        # config.rounds for config.federated.rounds, or the right name elsewhere.
        by_key = {entry.rpartition(".")[2]: entry for entry in known}
        key = name.rpartition(".")[2]
        near = [
            by_key[match]
            for match in difflib.get_close_matches(key, by_key, n=1, cutoff=0.75)
        ]
    dot = "config." if prefix else ""
    if near:
        hint = f"did you mean {dot}{near[0]}?"
    else:
        section, inside, _ = name.partition(".")
        siblings = [entry for entry in known if entry.startswith(section + ".")]
        if not (inside and siblings):
            # The sections say enough where not even the section is known.
            siblings = dict.fromkeys(entry.partition(".")[0] for entry in known)
        hint = "there are " + ", ".join(dot + entry for entry in siblings)
    return ConfigError(f"{dot}{name}: no such {what}; {hint}")
