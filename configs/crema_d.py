"""CREMA-D, emotions of 91 actors, who are the clients: the settings of FedAudio.

    python -m federated.compare  --config=configs/crema_d.py --workdir=runs/crema_d
    python -m federated.report   --config=configs/crema_d.py --workdir=runs/crema_d

Each fifth of the actors is the test set in turn; `test_fold=1` leaves that turn alone.
The classes are the original's four emotions, by the vote of those who saw and heard the
clip (arXiv 2210.15707). How many actors take part in a round, 7 (a tenth), and the
1,000 rounds are ours. Methods start at random: GPT-FL has no synthetic data for this
set, and `init` names weights of your own.

The data are in $GPTFL_DATA_DIR/crema_d, or data/crema_d where that is not set.
"""

import os

from ml_collections import ConfigDict

from gptfl_jax import configuration

ARGUMENTS = {
    "seed": "seed",
    "folder": "data.folder",
    "test_fold": "data.options.test_fold",
    "labels": "data.options.labels",
    "cache": "data.options.cache",
    "epochs": "train.epochs",
    "rounds": "federated.rounds",
    "algorithm": "federated.algorithm",
    "init": "federated.init",
    "cohort_size": "federated.cohort_size",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`."""
    config = configuration.default_config(
        *("data", "model", "train", "federated", "compare", "report"),
    )
    config.data.source = "crema_d"
    root = os.environ.get("GPTFL_DATA_DIR", "data")
    config.data.folder = os.path.join(root, "crema_d")
    config.data.options = {
        **{"test_fold": 1, "labels": "voted"},
        "cache": os.path.join(root, "features"),
    }
    config.model.name = "audio_conv_rnn"

    train = config.train
    train.data = "real"
    train.epochs = 200
    train.batch_size = 32
    train.learning_rate = 1e-4

    federated = config.federated
    federated.partition = "natural"
    federated.rounds = 1000
    federated.cohort_size = 7
    federated.batch_size = 16
    federated.client_learning_rate = 0.1
    federated.checkpoint_every = 50

    configuration.apply_arguments(config, arg, ARGUMENTS)
    named = "test_fold" in arg
    folds = (config.data.options.test_fold,) if named else range(1, 6)
    config.compare.data = {f"fold{fold}": {"test_fold": fold} for fold in folds}
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
