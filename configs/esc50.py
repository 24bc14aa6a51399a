"""ESC-50, 50 environmental sounds: the settings of GPT-FL and FedAudio.

    python -m generate.prompts   --config=configs/esc50.py --workdir=runs/esc50
    python -m generate.sounds    --config=configs/esc50.py --workdir=runs/esc50
    python -m train.downstream   --config=configs/esc50.py --workdir=runs/esc50
    python -m federated.compare  --config=configs/esc50.py --workdir=runs/esc50
    python -m federated.report   --config=configs/esc50.py --workdir=runs/esc50

As the original: 2,000 clips of 5 s by AudioLDM, 100 steps, guidance 2.5. Its licence
(CC BY-NC-SA 4.0) forbids commercial use; each line of the manifest names it.
`prompts=multi_domain` and `prompts=ucg` are the original's other prompts.

Each of the five folds is the test set in turn; `test_fold=5` leaves that turn alone.
The clients are 50, balanced Dirichlet(0.1) over the labels of the other folds (GPT-FL,
arXiv 2306.02210; FedAudio, arXiv 2210.15707). How many of them take part in a round, 5,
and the 1,000 rounds are ours, as GPT-FL's for pictures. `faithful=True` holds nothing
out of stage 2, averages over the padding of clips, hears the first channel of stereo
recordings, and shares wrong labels equally where `data.options.flaws` asks for some.
Published accuracy: 32.5 % without synthetic data, 43.5 % by GPT-FL.

The data are in $GPTFL_DATA_DIR/esc50, or data/esc50 where that is not set: classes are
those of its `meta/esc50.csv`, and the release's where it is not there yet. Their
licence forbids commercial use.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    **presets.FEDAUDIO_ARGUMENTS,
    "test_fold": "data.options.test_folds",
    "prompts": "prompts.method",
    "samples": "generate.samples_per_class",
    "data": "train.data",
    "alpha": "federated.partition_options.alpha",
    "num_clients": "federated.num_clients",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `faithful=True` does more as the original (`presets.as_the_original`).
    """
    config = presets.fedaudio("esc50", "prompts", "generate")
    config.data.options.test_folds = 5

    generate = config.generate
    generate.model = "cvssp/audioldm"
    generate.samples_per_class = "40"
    generate.num_steps = 100
    generate.guidance_scale = 2.5
    generate.duration_s = 5.0
    generate.batch_size = 8

    config.federated.partition = "dirichlet_balanced"
    config.federated.num_clients = 50
    config.federated.partition_options = {"alpha": 0.1, "min_examples": 5}

    arg, faithful = presets.take_flag(arg, "faithful")
    if faithful:
        presets.as_the_original(config)
    configuration.apply_arguments(config, arg, ARGUMENTS)
    presets.set_folds(config, arg, "test_folds", count=5)
    methods = presets.FEDAUDIO_METHODS
    config.compare.methods = presets.from_each_start(
        {name: methods[name] for name in ("fedavg", "fedopt")}
    )
    config.report.targets = (0.3, 0.4)
    return config
