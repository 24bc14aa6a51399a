"""Spoken digits of six speakers (FSDD): the whole of GPT-FL on voices.

    python -m generate.prompts   --config=configs/fsdd.py --workdir=runs/fsdd
    python -m generate.speech    --config=configs/fsdd.py --workdir=runs/fsdd
    python -m train.downstream   --config=configs/fsdd.py --workdir=runs/fsdd
    python -m federated.compare  --config=configs/fsdd.py --workdir=runs/fsdd
    python -m federated.report   --config=configs/fsdd.py --workdir=runs/fsdd

`make demo-speech` is these five. The comparison holds out each speaker in turn as the
test set. The clients are the other five, and as the hard setting 50 that hold few
digits each, Dirichlet(0.1). One federation in place of the comparison:

    python -m federated.simulate --workdir=runs/fsdd \
        --config=configs/fsdd.py:test_speaker=theo,partition=dirichlet,init=synthetic

The generator is the one that ships in gptfl_jax/assets/voices. It was trained on free
synthesizers, and has heard no human recording. One classifier of stage 2 serves all
turns, as it is trained on synthetic clips alone: three for each of a turn's 2,500
recordings. The accuracy that stage 2 prints is of `test_speaker` alone.

The learning rates were chosen on turns inside the turns, in which one of the five
training speakers is tested:

    python -m federated.sweep --workdir=runs/fsdd-tuning \
        --config=configs/fsdd.py:tune=True,init=runs/fsdd/pretrain

`starts=True` compares what a start is worth (docs/starts.md).

The recordings are looked for in $GPTFL_DATA_DIR/fsdd, or data/fsdd where that is not
set, and downloaded where they are not there.
"""

from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "test_speaker": "data.options.test_speakers",
    "samples": "generate.samples_per_class",
    "prompts": "prompts.per_class",
    "per_class": "train.synthetic_per_class",
    "stage_2": "train.run",
    "epochs": "train.epochs",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "partition": "federated.partition",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
    "cohort_size": "federated.cohort_size",
    "client_learning_rate": "federated.client_learning_rate",
}

# The clients are the five speakers, or 50 that hold few digits each.
PARTITIONS = {"speakers": "natural", "skewed": "dirichlet"}
SKEW = {"alpha": 0.1, "min_examples": 5}
FEDADAM = dict(presets.FEDADAM)

# Of each algorithm, start and partition: learning rates of the clients and the server.
RATES = {
    "fedavg-scratch": {"speakers": (1.0,), "skewed": (1.0,)},
    "fedopt-scratch": {"speakers": (1.0, 0.01), "skewed": (1.0, 0.01)},
    "fedavg-gptfl": {"speakers": (1.0,), "skewed": (1.0,)},
    "fedopt-gptfl": {"speakers": (0.1, 0.01), "skewed": (1.0, 0.001)},
}

# What a start is worth: rates of the clients, and of FedOpt's server, searched for each
# method and start by `starts=True,tune=True` (docs/starts.md).
_HIGH = dict.fromkeys(("fedavg", "fedprox", "scaffold"), (1.0,))
STARTS = {
    "random": {
        **_HIGH,
        "fedopt": (1.0, 0.03),
        "local": (1.0,),
        "clients": (1.0,),
        "server": (0.3,),
    },
    "synthetic": {
        **_HIGH,
        "fedopt": (1.0, 0.01),
        "local": (0.1,),
        "clients": (0.3,),
        "server": (0.3,),
    },
    "procedural": {
        **_HIGH,
        "fedopt": (1.0, 0.03),
        "local": (1.0,),
        "clients": (1.0,),
        "server": (1.0,),
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    With `test_speaker` among them the comparison has that turn alone.
    """
    config = configuration.default_config(*presets.STAGES)
    config.data.source = "fsdd"
    config.data.folder = presets.data_folder("fsdd")
    # Features at the recordings' 8 kHz, of real and synthetic clips alike.
    config.data.options = {"test_speakers": "theo", "download": True}
    config.model.name = "audio_cnn"
    config.model.options = {"widths": (32, 48, 64)}

    config.prompts.method = "multi_speaker"

    generate = config.generate
    generate.model = "voices"
    generate.samples_per_class = "3x"
    generate.max_seconds = 2.0
    generate.snr_db = (10.0, 20.0, 30.0, 40.0)
    generate.batch_size = 64

    train = config.train
    train.epochs = 10
    train.batch_size = 64
    train.learning_rate = 1e-3
    train.label_smoothing = 0.1
    train.tempo, train.warp, train.time_shift = 0.3, 0.15, 8
    train.time_masks, train.time_mask_width = 2, 10
    train.frequency_masks, train.frequency_mask_width = 2, 6

    federated = config.federated
    federated.partition = "natural"
    federated.partition_options = SKEW  # of the other partition
    federated.num_clients = 50
    federated.rounds = 15
    federated.cohort_size = 5
    federated.local_steps = 10
    federated.batch_size = 32
    federated.clip_norm = 1.0
    federated.learning_rate_schedule = "cosine"
    federated.eval_every = 1
    federated.checkpoint_every = 15

    config.report.targets = (0.5, 0.6)
    config.report.private_examples = True  # they are public

    arg, tune = presets.take_flag(arg, "tune")
    arg, starts = presets.take_flag(arg, "starts")
    configuration.apply_arguments(config, arg, ARGUMENTS)
    skew = {**SKEW, **federated.partition_options}
    if federated.partition == "natural":
        federated.partition_options = {}
    if federated.algorithm == "fedopt":
        federated.algorithm_options = {"server_options": FEDADAM}
    if starts:
        _compare_starts(config, tune, skew)
        return config
    if tune:
        _make_search(config)
        return config
    named = "test_speaker" in arg
    speakers = (config.data.options.test_speakers,) if named else SPEAKERS
    config.compare.data = {name: {"test_speakers": name} for name in speakers}
    config.compare.methods = {
        f"{name}-{partition}": _method(
            name,
            "synthetic" if name.endswith("gptfl") else "random",
            partition,
            skew,
            *rates[partition],
        )
        for name, rates in RATES.items()
        for partition in PARTITIONS
    }
    config.compare.seeds = (0, 1, 2)
    return config


def _compare_starts(config: ConfigDict, tune: bool, skew: dict[str, Any]) -> None:
    """What a start is worth to skewed clients, or with `tune` the search for its rates.

    Two speakers are held out together; the search is among the other four.
    """
    federated = config.federated
    federated.partition, federated.partition_options = "dirichlet", skew
    setting = {
        "clients": federated.num_clients,
        "alone": {"local_steps": 100},
        "synthetic": 40,
        "server_steps": 5,
    }
    tested, others = SPEAKERS[:2], SPEAKERS[2:]
    if tune:
        federated.eval_every = federated.rounds
        config.compare.data = {
            others[0]: {"speakers": others, "test_speakers": others[0]}
        }
        presets.search_starts(config, tuple(STARTS), **setting)
        config.compare.seeds = (10,)
    else:
        config.compare.data = {"-".join(tested): {"test_speakers": tested}}
        presets.compare_starts(config, STARTS, **setting)
        config.compare.seeds = (0, 1, 2, 3, 4)


def _method(
    name: str,
    init: str,
    partition: str,
    skew: dict[str, float],
    *rates: float,
) -> dict[str, Any]:
    """The fields of a method for `compare`."""
    return {
        "algorithm": name.partition("-")[0],
        "init": init,
        "partition": PARTITIONS[partition],
        "partition_options": skew if partition == "skewed" else {},
        **presets.at_rates(*rates),
    }


def _make_search(config: ConfigDict) -> None:
    """Turns inside the turns: one of the five training speakers is the test set.

    A grid for each algorithm, start and partition, with a seed of its own.
    """
    config.federated.cohort_size = 4
    config.compare.data = {
        f"{held_out}-{tested}": {
            "speakers": tuple(name for name in SPEAKERS if name != held_out),
            "test_speakers": tested,
        }
        for held_out, tested in zip(SPEAKERS, SPEAKERS[1:] + SPEAKERS[:1], strict=True)
    }
    config.compare.validation_fraction = 0.0
    config.compare.grid = (
        f"federated.init=random,{config.federated.init}",
        f"federated.partition={','.join(PARTITIONS.values())}",
        *(f"federated.partition_options.{name}={v}" for name, v in SKEW.items()),
        "federated.algorithm=fedavg,fedopt",
        "federated.client_learning_rate=0.03,0.1,0.3,1,3",
        "federated.algorithm_options.server_learning_rate=0.001,0.003,0.01,0.03",
        f"federated.algorithm_options.server_options={FEDADAM}",
    )
    config.compare.seeds = (10,)
