"""UrbanSound8K, ten sounds of the street: the settings of FedAudio.

    python -m federated.compare  --config=configs/urbansound8k.py --workdir=runs/urban
    python -m federated.report   --config=configs/urbansound8k.py --workdir=runs/urban

Each of the ten folds is the test set in turn; `test_fold=10` leaves that turn alone.
The clients are 50, balanced Dirichlet(0.1) over the labels of the other folds, of whom
10 take part in a round, 5,000 rounds, tested every second; FedProx has mu 1 (arXiv
2210.15707). Clips are cut into segments of 3 s, and a clip is told by all of its own:
by the mean of their probabilities, a segment starting every second, both of which are
ours; `segment=0` takes clips whole. `faithful=True` hears the first channel of stereo
recordings, and shares wrong labels equally where `data.options.flaws` asks for some.
Methods start at random: GPT-FL has no synthetic data for this set. With clips of your
own in runs/urban/synthetic, run train.downstream, and set `init=synthetic`.

The data are in $GPTFL_DATA_DIR/urbansound8k, or data/urbansound8k where that is not
set; `download=True` gets them (6 GB). Their licence forbids commercial use.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    **presets.FEDAUDIO_ARGUMENTS,
    "test_fold": "data.options.test_folds",
    "segment": "data.options.segment_s",
    "download": "data.options.download",
    "data": "train.data",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `faithful=True` does more as the original (`presets.as_the_original`).
    """
    config = presets.fedaudio("urbansound8k", "prompts")
    config.data.options.test_folds = 10
    config.data.options.segment_s = 3.0

    config.federated.rounds = 5000
    config.federated.cohort_size = 10
    config.federated.partition = "dirichlet_balanced"
    config.federated.num_clients = 50
    config.federated.partition_options = {"alpha": 0.1, "min_examples": 5}

    arg, faithful = presets.take_flag(arg, "faithful")
    if faithful:
        presets.as_the_original(config)
    configuration.apply_arguments(config, arg, ARGUMENTS)
    presets.set_folds(config, arg, "test_folds", count=10)
    config.compare.methods = presets.FEDAUDIO_METHODS
    config.report.targets = (0.5, 0.6)
    return config
