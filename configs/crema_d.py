"""CREMA-D, emotions of 91 actors, who are the clients: the settings of FedAudio.

    python -m federated.compare  --config=configs/crema_d.py --workdir=runs/crema_d
    python -m federated.report   --config=configs/crema_d.py --workdir=runs/crema_d

Each fifth of the actors is the test set in turn; `test_fold=1` leaves that turn alone.
The classes are the original's four emotions, by the vote of those who saw and heard the
clip; 7 of them take part in a round, 1,000 rounds, tested every second; FedProx has mu
1 (arXiv 2210.15707). Features are standardised over all clips of an actor;
`standardise=clip` does it clip by clip. `faithful=True` takes the 81 of the 91 actors
whom the original finds, in its folds, hears the first channel of stereo recordings, and
shares wrong labels equally where `data.options.flaws` asks for some. Methods start at
random: GPT-FL has no synthetic data for this set, and `init` names weights of your own.

The data are in $GPTFL_DATA_DIR/crema_d, or data/crema_d where that is not set.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    **presets.FEDAUDIO_ARGUMENTS,
    "test_fold": "data.options.test_fold",
    "labels": "data.options.labels",
    "standardise": "data.options.standardise",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `faithful=True` does more as the original (`presets.as_the_original`).
    """
    config = presets.fedaudio("crema_d")
    config.data.options.update({"test_fold": 1, "labels": "voted"})
    config.data.options.standardise = "speaker"

    config.train.data = "real"

    config.federated.partition = "natural"
    config.federated.cohort_size = 7

    arg, faithful = presets.take_flag(arg, "faithful")
    if faithful:
        presets.as_the_original(config)
        config.data.options.actors = "original"
    configuration.apply_arguments(config, arg, ARGUMENTS)
    presets.set_folds(config, arg, "test_fold", count=5)
    config.compare.methods = presets.FEDAUDIO_METHODS
    config.report.targets = (0.5, 0.6)
    return config
