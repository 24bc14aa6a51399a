"""Fields of `config.train`."""

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field
from gptfl_jax.configuration.sections.augmentation import AUGMENTATION
from gptfl_jax.configuration.sections.model import TRAINABLE
from gptfl_jax.errors import refused

FIELDS: dict[str, Field] = {
    "data": Field(
        "synthetic",
        rules.one_of("synthetic", "real", "both", "procedural"),
        "what to train on: synthetic (stage 1's), real, both, or procedural: fractals, "
        "of sounds calls, drawn by rule, for federated.init=procedural",
        common=True,
    ),
    "synthetic_per_class": Field(
        0,
        rules.whole(0),
        "examples of each class to take of stage 1's, the first of its manifest; "
        "0: all",
    ),
    "procedural_classes": Field(
        64, rules.whole(2), "rules that train.data=procedural tells apart"
    ),
    "procedural_per_class": Field(64, rules.whole(2), "examples of each of them"),
    "trainable": TRAINABLE,
    "epochs": Field(200, rules.whole(1), "passes over the training set", common=True),
    "batch_size": Field(
        32, rules.whole(1), "examples a step, over all devices", common=True
    ),
    "optimizer": Field("adamw", rules.one_of("adamw", "sgd"), "optimizer"),
    "learning_rate": Field(
        1e-4, rules.number(above=0), "peak learning rate", common=True
    ),
    "momentum": Field(0.9, rules.number(least=0, most=1), "momentum of sgd"),
    "weight_decay": Field(
        5e-4, rules.number(least=0), "weight decay, decoupled in adamw, L2 in sgd"
    ),
    "schedule": Field(
        "cosine", rules.one_of("cosine", "constant"), "learning rate over all epochs"
    ),
    "warmup_epochs": Field(
        0.0, rules.number(least=0), "epochs of linear rise to the peak learning rate"
    ),
    "label_smoothing": Field(
        0.0, rules.number(least=0, most=1), "share of a label spread over all classes"
    ),
    "clip_norm": Field(
        0.0, rules.number(least=0), "largest norm of a gradient; 0: not clipped"
    ),
    **AUGMENTATION["pictures"],
    **AUGMENTATION["sounds"],
    "validation_fraction": Field(
        0.1,
        rules.number(least=0, below=1),
        "share of the training set held out to choose the best checkpoint; "
        "0: the last one is the best",
    ),
    "eval_every": Field(1, rules.whole(1), "epochs between tests on the real test set"),
    "checkpoint_every": Field(10, rules.whole(1), "most epochs between checkpoints"),
    "run": Field(
        "",
        rules.FOLDER_NAME_OR_EMPTY,
        "name of the folder, in the workdir, that checkpoints and metrics go to; "
        "empty: pretrain, of procedural data procedural",
        common=True,
    ),
    "eval_batch_size": Field(512, rules.whole(1), "examples at once in a test"),
    "dtype": Field("float32", rules.DTYPE, "precision of the computation"),
    "data_placement": Field(
        "auto",
        rules.one_of("auto", "device", "stream"),
        "the training set on the device, or each step's examples ahead of it (stream); "
        "auto: stream what would take more than half of the free memory, or on a CPU, "
        "of pictures that are kept decoded on disk, more than a sixteenth",
    ),
}


# What else lies in a workdir, and what else `federated.init` stands for.
_TAKEN = (
    *("federated", "paper", "sweep", "synthetic"),
    *("imagenet", "random", "weights"),
)


def check(config: ConfigDict) -> None:
    """The rules that bind several fields, and names that are taken."""
    if config.train.run in _TAKEN:
        raise refused(
            "train.run", config.train.run, f"a name other than {', '.join(_TAKEN)}"
        )
    if config.train.warmup_epochs > config.train.epochs:
        raise refused(
            "train.warmup_epochs",
            config.train.warmup_epochs,
            f"at most config.train.epochs = {config.train.epochs}",
        )
