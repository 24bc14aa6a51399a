"""IEMOCAP, emotions of ten speakers, who are the clients: the settings of FedAudio.

    python -m federated.compare  --config=configs/iemocap.py --workdir=runs/iemocap
    python -m federated.report   --config=configs/iemocap.py --workdir=runs/iemocap

Each of the five sessions, of two speakers, is the test set in turn; `test_fold=1`
leaves that turn alone. The classes are the original's four emotions of the improvised
talks, where excitement is happiness. All eight other speakers take part in a round,
5,000 rounds at a learning rate of 0.0025, tested every second; FedProx has mu 1 (arXiv
2210.15707; a script of the original has 300 rounds at 0.005). A turn is heard up to its
tenth second, which is ours: the original pads each batch to its longest turn. Features
are standardised over all turns of a speaker; `standardise=clip` does it turn by turn.
`faithful=True` hears the first channel of stereo recordings, and shares wrong labels
equally where `data.options.flaws` asks for some. The original's features are those of a
pretrained network (APC), here they are log-mel spectrograms, or by
`data.options.features` those of a wav2vec 2.0 or HuBERT. Methods start at random:
GPT-FL has no synthetic data for this set.

The data are in $GPTFL_DATA_DIR/iemocap, or data/iemocap where that is not set. Who may
have them: https://sail.usc.edu/iemocap.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    **presets.FEDAUDIO_ARGUMENTS,
    "test_fold": "data.options.test_session",
    "dialogs": "data.options.dialogs",
    "standardise": "data.options.standardise",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `faithful=True` does more as the original (`presets.as_the_original`).
    """
    config = presets.fedaudio("iemocap")
    config.data.options.update({"test_session": 1, "standardise": "speaker"})
    config.data.options.features = {"max_duration_s": 10.0}

    config.train.data = "real"

    config.federated.rounds = 5000
    config.federated.partition = "natural"
    config.federated.cohort_size = 8
    config.federated.client_learning_rate = 0.0025

    arg, faithful = presets.take_flag(arg, "faithful")
    if faithful:
        presets.as_the_original(config)
    configuration.apply_arguments(config, arg, ARGUMENTS)
    presets.set_folds(config, arg, "test_session", count=5)
    config.compare.methods = presets.FEDAUDIO_METHODS
    config.report.targets = (0.5, 0.6)
    return config
