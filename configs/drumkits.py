"""Drums and cymbals of Hydrogen's kits: the whole of GPT-FL on sounds.

    apt install hydrogen-drumkits
    python -m generate.prompts   --config=configs/drumkits.py --workdir=runs/drumkits
    python -m generate.sounds    --config=configs/drumkits.py --workdir=runs/drumkits
    python -m train.downstream   --config=configs/drumkits.py --workdir=runs/drumkits
    python -m federated.compare  --config=configs/drumkits.py --workdir=runs/drumkits
    python -m federated.report   --config=configs/drumkits.py --workdir=runs/drumkits

`make demo-sounds` is these five. The clients are kits; in four turns some are held out
as the test set, all kits of one author together. One federation in place of the
comparison:

    python -m federated.simulate --workdir=runs/drumkits \
        --config=configs/drumkits.py:test_kits=VariBreaks,init=synthetic

The generator is the one that ships in gptfl_jax/assets/drums. It has learned from
strokes made by rule and from Sonic Pi's samples, and has heard none of the kits. One
classifier of stage 2 serves all turns, as it is trained on synthetic strokes alone. The
accuracy that stage 2 prints is of the kit `test_kits` alone.

FedAvg's learning rates were searched on turns inside the turns, FedOpt's are a first
guess (docs/drums.md). The search of both:

    python -m federated.sweep --workdir=runs/drumkits-tuning \
        --config=configs/drumkits.py:tune=True,init=runs/drumkits/pretrain

The kits are looked for where Debian's package hydrogen-drumkits has them; `folder=`
names another place. Most are under GPL-2, and none is part of this package.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

# Kits of one author stay together.
TURNS = {
    "pacific": ("BJA_Pacific", "Audiophob"),
    "forzee": ("ForzeeStereo", "ElectricEmpireKit", "HardElectro1", "VariBreaks"),
    "pearl": ("The Black Pearl 1.0", "ColomboAcousticDrumkit", "rumpf_kit_z01_h2"),
    "millo": ("Millo-Drums_v.1", "Millo_MultiLayered2", "Millo_MultiLayered3"),
}

ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "generator": "generate.model",
    "test_kits": "data.options.test_kits",
    "samples": "generate.samples_per_class",
    "epochs": "train.epochs",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "client_learning_rate": "federated.client_learning_rate",
}

# Of each algorithm and start: learning rates of the clients and the server.
RATES = {
    "fedavg-scratch": (1.0,),
    "fedopt-scratch": (0.3, 0.01),
    "fedavg-gptfl": (0.1,),
    "fedopt-gptfl": (0.1, 0.003),
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    With `test_kits` among them the comparison has that turn alone.
    """
    config = configuration.default_config(*presets.STAGES)
    config.data.source = "drumkits"
    config.data.folder = "/usr/share/hydrogen/data"
    config.data.options = {"test_kits": "BJA_Pacific"}
    config.model.name = "audio_cnn"
    config.model.options = {"widths": (32, 48, 64)}

    config.prompts.method = "multi_domain"

    generate = config.generate
    generate.model = "drums"
    generate.samples_per_class = "400"
    generate.num_steps = 25
    generate.guidance_scale = 2.0
    generate.duration_s = 1.024
    generate.batch_size = 96

    train = config.train
    train.epochs = 15
    train.batch_size = 64
    train.learning_rate = 1e-3
    train.label_smoothing = 0.1
    train.tempo, train.warp, train.time_shift = 0.3, 0.15, 4
    train.time_masks, train.time_mask_width = 1, 10
    train.frequency_masks, train.frequency_mask_width = 2, 8

    federated = config.federated
    federated.partition = "natural"
    federated.rounds = 20
    federated.cohort_size = 4
    federated.local_steps = 10
    federated.batch_size = 16
    federated.clip_norm = 1.0
    federated.learning_rate_schedule = "cosine"
    federated.eval_every = 1
    federated.checkpoint_every = 20

    config.report.targets = (0.6, 0.7)
    config.report.private_examples = True  # they are public

    arg, tune = presets.take_flag(arg, "tune")
    configuration.apply_arguments(config, arg, ARGUMENTS)
    if federated.algorithm == "fedopt":
        federated.algorithm_options = {"server_options": dict(presets.FEDADAM)}
    if tune:
        _make_search(config)
        return config
    turns = TURNS
    if "test_kits" in arg:
        turns = {"chosen": config.data.options.test_kits}
    config.compare.data = {name: {"test_kits": kits} for name, kits in turns.items()}
    config.compare.methods = {
        name: {
            "algorithm": name.partition("-")[0],
            "init": presets.STARTS[name.partition("-")[2]],
            **presets.at_rates(*rates),
        }
        for name, rates in RATES.items()
    }
    config.compare.seeds = (0, 1, 2)
    return config


def _make_search(config: ConfigDict) -> None:
    """Turns inside the turns: of three turns' kits those of one are the test set.

    A grid for each algorithm and start, with a seed of its own.
    """
    names = list(TURNS)
    config.compare.data = {
        f"{held_out}-{tested}": {
            "kits": tuple(
                kit for name in names if name != held_out for kit in TURNS[name]
            ),
            "test_kits": TURNS[tested],
        }
        for held_out, tested in zip(names, names[1:] + names[:1], strict=True)
    }
    config.compare.validation_fraction = 0.0
    config.compare.grid = (
        f"federated.init=random,{config.federated.init}",
        "federated.algorithm=fedavg,fedopt",
        "federated.client_learning_rate=0.03,0.1,0.3,1",
        "federated.algorithm_options.server_learning_rate=0.003,0.01",
        f"federated.algorithm_options.server_options={dict(presets.FEDADAM)}",
    )
    config.compare.seeds = (10,)
