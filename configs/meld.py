"""MELD, sentiments in lines of a comedy series: FedAudio's split, speakers as clients.

    python -m federated.compare  --config=configs/meld.py --workdir=runs/meld
    python -m federated.report   --config=configs/meld.py --workdir=runs/meld

The classes are the 3 sentiments, `task=emotion` makes them 7 emotions. Speakers with
more than ten clips are clients, but for what the tables call All, Man, Policeman, Tag
and Woman. FedAudio (arXiv 2210.15707) reads this set but gives no results on it: how
many clients take part in a round, 5, the 1,000 rounds and the learning rate of 0.1 are
ours. A clip is heard up to its eighth second, which is ours too: the original pads each
batch to its longest clip. Features are standardised over all clips of a speaker;
`standardise=clip` does it clip by clip. `faithful=True` hears the first channel of
stereo recordings, and shares wrong labels equally where `data.options.flaws` asks for
some. Methods start at random: GPT-FL has no synthetic data for this set.

The data are in $GPTFL_DATA_DIR/meld, or data/meld where that is not set; the sound is
to be taken out of the videos first (`gptfl_jax/data/sources/meld.py` says how).
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    **presets.FEDAUDIO_ARGUMENTS,
    "task": "data.options.task",
    "test_list": "data.options.test_list",
    "standardise": "data.options.standardise",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `faithful=True` does more as the original (`presets.as_the_original`).
    """
    config = presets.fedaudio("meld")
    config.data.options.update({"task": "sentiment", "test_list": "test"})
    config.data.options.standardise = "speaker"
    config.data.options.features = {"max_duration_s": 8.0}

    config.train.data = "real"

    config.federated.partition = "natural"

    arg, faithful = presets.take_flag(arg, "faithful")
    if faithful:
        presets.as_the_original(config)
    configuration.apply_arguments(config, arg, ARGUMENTS)
    config.compare.methods = presets.FEDAUDIO_METHODS
    config.report.targets = (0.45, 0.5)
    return config
