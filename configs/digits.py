"""scikit-learn's 1,797 handwritten digits: the whole of GPT-FL in a few minutes.

    python -m generate.prompts   --config=configs/digits.py --workdir=runs/digits
    python -m generate.images    --config=configs/digits.py --workdir=runs/digits
    python -m train.downstream   --config=configs/digits.py --workdir=runs/digits
    python -m federated.compare  --config=configs/digits.py --workdir=runs/digits
    python -m federated.report   --config=configs/digits.py --workdir=runs/digits

`make demo` is these five. One federation in place of the comparison:

    python -m federated.simulate --workdir=runs/digits \
        --config=configs/digits.py:algorithm=fedopt,init=synthetic,alpha=0.5

The generator is the one that ships in gptfl_jax/assets/glyphs. It was trained on fonts
and on pen paths, and has seen no digit of any data set. The private data are the digits
of the first 11 writing runs; the test set is the last 3, hands that no client has. Each
of 100 clients holds few labels, Dirichlet(0.1), and few examples, 14 on average; 5 take
part in a round.

Expected, by the last command: README.md shows its table. The hyperparameters of each
method were chosen without the test set, on the 11 training runs alone:

    python -m federated.sweep --workdir=runs/digits-tuning \
        --config=configs/digits.py:tune=True,init=runs/digits/pretrain

docs/digits.md says how, and what came out. `starts=True` compares what a start is worth
(docs/starts.md).
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    "seed": "seed",
    "samples": "generate.samples_per_class",
    "prompts": "prompts.per_class",
    "guidance": "generate.guidance_scale",
    "per_class": "train.synthetic_per_class",
    "stage_2": "train.run",
    "epochs": "train.epochs",
    "test_blocks": "data.options.test_blocks",
    "blocks": "data.options.blocks",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "partition": "federated.partition",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
    "cohort_size": "federated.cohort_size",
    "client_learning_rate": "federated.client_learning_rate",
}

FEDADAM = dict(presets.FEDADAM)

# Of each algorithm and each start, as tuned.
METHODS = {
    "fedavg-scratch": {"algorithm": "fedavg", "client_learning_rate": 1.0},
    "fedprox-scratch": {
        "algorithm": "fedprox",
        "client_learning_rate": 1.0,
        "algorithm_options": {"mu": 0.1},
    },
    "fedopt-scratch": {
        "algorithm": "fedopt",
        "client_learning_rate": 0.1,
        "algorithm_options": {"server_learning_rate": 0.01, "server_options": FEDADAM},
    },
    "fedavg-gptfl": {"algorithm": "fedavg", "client_learning_rate": 0.3},
    "fedprox-gptfl": {
        "algorithm": "fedprox",
        "client_learning_rate": 0.3,
        "algorithm_options": {"mu": 0.1},
    },
    "fedopt-gptfl": {
        "algorithm": "fedopt",
        "client_learning_rate": 0.1,
        "algorithm_options": {"server_learning_rate": 0.003, "server_options": FEDADAM},
    },
}

# What a start is worth: rates of the clients, and of FedOpt's server, searched for each
# method and start by `starts=True,tune=True` (docs/starts.md).
STARTS = {
    "random": {
        **dict.fromkeys(("fedavg", "fedprox", "scaffold"), (1.0,)),
        "fedopt": (1.0, 0.03),
        "local": (0.3,),
        "clients": (1.0,),
        "server": (0.3,),
    },
    "synthetic": {
        **dict.fromkeys(("fedavg", "fedprox", "scaffold"), (0.3,)),
        "fedopt": (0.1, 0.003),
        "local": (0.1,),
        "clients": (0.1,),
        "server": (0.3,),
    },
    "procedural": {
        **dict.fromkeys(("fedavg", "fedprox", "scaffold"), (0.1,)),
        "fedopt": (0.1, 0.01),
        "local": (0.1,),
        "clients": (1.0,),
        "server": (0.3,),
    },
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `tune=True` among them makes it the search for hyperparameters, `guided=True` lets
    the generator take 15 steps with guidance in place of 4 without.
    """
    config = configuration.default_config(*presets.STAGES)
    config.data.source = "sklearn_digits"
    config.model.name = "convnet"
    config.model.options = {"width": 64, "depth": 2}

    prompts = config.prompts
    prompts.method = "multi_domain"
    prompts.template = "a handwritten digit {name}, {domain}"
    prompts.domains = tuple(
        f"{weight} {slant} strokes on a dark background, filling the frame"
        for weight in ("thin", "medium", "thick")
        for slant in ("upright", "slanted", "tilted")
    )

    generate = config.generate
    generate.model = "glyphs"
    generate.lora = "glyphs-4-steps"
    generate.samples_per_class = "3x"
    generate.num_steps = 4
    generate.guidance_scale = 1.0
    generate.batch_size = 128

    train = config.train
    train.epochs = 30
    train.batch_size = 64
    train.learning_rate = 3e-3
    train.shift, train.scale, train.rotate, train.shear = 0.1, 0.1, 10.0, 10.0

    federated = config.federated
    federated.partition = "dirichlet"
    federated.num_clients = 100
    federated.partition_options = {"alpha": 0.1, "min_examples": 5}
    federated.rounds = 30
    federated.cohort_size = 5
    federated.local_epochs = 2
    federated.batch_size = 10
    federated.learning_rate_schedule = "cosine"
    federated.eval_every = 1
    federated.checkpoint_every = 30

    config.report.private_examples = True  # they are public

    arg, guided = presets.take_flag(arg, "guided")
    if guided:
        generate.lora = ""
        generate.num_steps, generate.guidance_scale = 15, 2.0
    arg, tune = presets.take_flag(arg, "tune")
    arg, starts = presets.take_flag(arg, "starts")
    configuration.apply_arguments(config, arg, ARGUMENTS)
    if federated.algorithm == "fedopt":
        federated.algorithm_options = {"server_options": FEDADAM}
    if starts:
        _compare_starts(config, tune)
    elif tune:
        _make_search(config)
    else:
        config.compare.methods = {
            name: {
                "init": "synthetic" if name.endswith("gptfl") else "random",
                **fields,
            }
            for name, fields in METHODS.items()
        }
        config.compare.seeds = (0, 1, 2)
    return config


def _compare_starts(config: ConfigDict, tune: bool) -> None:
    """What a start is worth, or with `tune` the search for its learning rates."""
    federated = config.federated
    setting = {
        "clients": federated.num_clients,
        "alone": {"local_epochs": 20},
        "synthetic": 40,
        "server_steps": 5,
    }
    if tune:
        config.data.options = {"blocks": 11, "test_blocks": 3}
        federated.eval_every = federated.rounds
        presets.search_starts(config, tuple(STARTS), **setting)
        config.compare.seeds = (10,)
    else:
        presets.compare_starts(config, STARTS, **setting)
        config.compare.seeds = (0, 1, 2, 3, 4)


def _make_search(config: ConfigDict) -> None:
    """The same federation over 8 of the 11 training runs, tested on the other 3.

    A grid of each algorithm's rates and each start, with seeds of its own.
    """
    config.data.options = {"blocks": 11, "test_blocks": 3}
    config.compare.validation_fraction = 0.0
    config.compare.grid = (
        f"federated.init=random,{config.federated.init}",
        "federated.algorithm=fedavg,fedprox,fedopt",
        "federated.client_learning_rate=0.03,0.1,0.3,1,3",
        "federated.algorithm_options.mu=0.1,1",
        "federated.algorithm_options.server_learning_rate=0.001,0.003,0.01,0.03",
        f"federated.algorithm_options.server_options={FEDADAM}",
    )
    config.compare.seeds = (10, 11, 12)
