"""ESC-50, 50 environmental sounds: the settings of GPT-FL and FedAudio.

    python -m generate.prompts   --config=configs/esc50.py --workdir=runs/esc50
    python -m train.downstream   --config=configs/esc50.py --workdir=runs/esc50
    python -m federated.compare  --config=configs/esc50.py --workdir=runs/esc50
    python -m federated.report   --config=configs/esc50.py --workdir=runs/esc50

The original makes 2,000 clips of 5 s with AudioLDM (100 steps, guidance 2.5), which no
program here runs yet: put the clips into runs/esc50/synthetic, as WAV files of 16 kHz
with a manifest.jsonl, for the second command to find. `generate` holds the settings.
`prompts=multi_domain` and `prompts=ucg` are the original's other prompts.

Each of the five folds is the test set in turn; `test_fold=5` leaves that turn alone.
The clients are 50, Dirichlet(0.1) over the labels of the other folds (GPT-FL, arXiv
2306.02210; FedAudio, arXiv 2210.15707). How many of them take part in a round, 5, and
the 1,000 rounds are ours, as GPT-FL's for pictures. Published accuracy: 32.5 % without
synthetic data, 43.5 % by GPT-FL.

The data are in $GPTFL_DATA_DIR/esc50, or data/esc50 where that is not set; their
licence forbids commercial use.
"""

import os

from ml_collections import ConfigDict

from gptfl_jax import configuration

ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "test_fold": "data.options.test_folds",
    "cache": "data.options.cache",
    "prompts": "prompts.method",
    "samples": "generate.samples_per_class",
    "epochs": "train.epochs",
    "data": "train.data",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
    "cohort_size": "federated.cohort_size",
}

FEDOPT = {
    "client_learning_rate": 0.05,
    "algorithm_options": {"server_learning_rate": 1e-3},
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`."""
    config = configuration.default_config(
        *("data", "model", "prompts", "generate", "train"),
        *("federated", "compare", "report"),
    )
    config.data.source = "esc50"
    root = os.environ.get("GPTFL_DATA_DIR", "data")
    config.data.folder = os.path.join(root, "esc50")
    config.data.options = {"test_folds": 5, "cache": os.path.join(root, "features")}
    config.model.name = "audio_conv_rnn"

    generate = config.generate
    generate.model = "cvssp/audioldm"
    generate.samples_per_class = "40"
    generate.num_steps = 100
    generate.guidance_scale = 2.5
    generate.max_seconds = 5.0

    train = config.train
    train.epochs = 200
    train.batch_size = 32
    train.learning_rate = 1e-4

    federated = config.federated
    federated.partition = "dirichlet"
    federated.num_clients = 50
    federated.partition_options = {"alpha": 0.1, "min_examples": 5}
    federated.rounds = 1000
    federated.cohort_size = 5
    federated.batch_size = 16
    federated.client_learning_rate = 0.1
    federated.checkpoint_every = 50

    configuration.apply_arguments(config, arg, ARGUMENTS)
    named = "test_fold" in arg
    folds = (config.data.options.test_folds,) if named else range(1, 6)
    config.compare.data = {f"fold{fold}": {"test_folds": fold} for fold in folds}
    config.compare.methods = {
        f"{algorithm}-{name}": {"algorithm": algorithm, "init": init, **fields}
        for algorithm, fields in (
            ("fedavg", {}),
            ("fedopt", FEDOPT),
        )
        for name, init in (("scratch", "random"), ("gptfl", "synthetic"))
    }
    config.report.targets = (0.3, 0.4)
    return config
