"""UrbanSound8K, ten sounds of the street: the settings of FedAudio.

    python -m federated.compare  --config=configs/urbansound8k.py --workdir=runs/urban
    python -m federated.report   --config=configs/urbansound8k.py --workdir=runs/urban

Each of the ten folds is the test set in turn; `test_fold=10` leaves that turn alone.
The clients are 50, Dirichlet(0.1) over the labels of the other folds (arXiv
2210.15707); how many of them take part in a round, 5, and the 1,000 rounds are ours.
Methods start at random: GPT-FL has no synthetic data for this set. With clips of your
own in runs/urban/synthetic, run train.downstream, and set `init=synthetic`.

The data are in $GPTFL_DATA_DIR/urbansound8k, or data/urbansound8k where that is not
set; `download=True` gets them (6 GB). Their licence forbids commercial use.
"""

import os

from ml_collections import ConfigDict

from gptfl_jax import configuration

ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "download": "data.options.download",
    "test_fold": "data.options.test_folds",
    "cache": "data.options.cache",
    "epochs": "train.epochs",
    "data": "train.data",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
    "cohort_size": "federated.cohort_size",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`."""
    config = configuration.default_config(
        *("data", "model", "prompts", "train", "federated", "compare", "report"),
    )
    config.data.source = "urbansound8k"
    root = os.environ.get("GPTFL_DATA_DIR", "data")
    config.data.folder = os.path.join(root, "urbansound8k")
    config.data.options = {"test_folds": 10, "cache": os.path.join(root, "features")}
    config.model.name = "audio_conv_rnn"

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
    folds = (config.data.options.test_folds,) if named else range(1, 11)
    config.compare.data = {f"fold{fold}": {"test_folds": fold} for fold in folds}
    config.compare.methods = {
        "fedavg": {"algorithm": "fedavg"},
        "fedprox": {"algorithm": "fedprox"},
        "fedopt": {
            "algorithm": "fedopt",
            "client_learning_rate": 0.05,
            "algorithm_options": {"server_learning_rate": 1e-3},
        },
    }
    config.report.targets = (0.5, 0.6)
    return config
