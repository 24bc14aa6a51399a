"""Speech Commands v0.02, speakers as clients: the settings of GPT-FL and FedAudio.

    python -m generate.prompts  --config=configs/speech_commands.py --workdir=runs/words
    python -m generate.speech   --config=configs/speech_commands.py --workdir=runs/words
    python -m train.downstream  --config=configs/speech_commands.py --workdir=runs/words
    python -m federated.compare --config=configs/speech_commands.py --workdir=runs/words
    python -m federated.report  --config=configs/speech_commands.py --workdir=runs/words

60,000 words by SpeechT5 in the voices of CMU Arctic, one drawn a sample; the classifier
of two convolutions and a GRU, trained on them for 200 epochs; then 2,112 speakers of
whom 5 % take part in a round, 5,000 rounds (GPT-FL, arXiv 2306.02210; FedAudio, arXiv
2210.15707). `prompts=class_prompt` speaks with one voice, as the first of the
original's two ways. The class "silence" has no synthetic clip, and in the original no
real one; `silence=0.1` adds those of a tenth.

Published accuracy: 26.2 % on synthetic data alone, 73.7 % by FedAvg, 83.5 % by GPT-FL.
`faithful=True` does as the original: it keeps clips as they are made, untrimmed and of
any length, holds none out of stage 2, averages over their padding, and shares wrong
labels equally where `data.options.flaws` asks for some. How it draws and weighs clients
is not certain: `sampling=with_replacement` and `weighting=uniform` are those of its
pictures.

The data are in $GPTFL_DATA_DIR/speech_commands, or data/speech_commands where that is
not set; `download=True` gets them (2.4 GB). Features are kept in `cache`.
"""

from ml_collections import ConfigDict

from gptfl_jax import configuration
from gptfl_jax.configuration import presets

ARGUMENTS = {
    **presets.FEDAUDIO_ARGUMENTS,
    "download": "data.options.download",
    "silence": "data.options.silence",
    "prompts": "prompts.method",
    "model": "generate.model",
    "samples": "generate.samples_per_class",
    "sampling": "federated.sampling",
    "weighting": "federated.weighting",
}


def get_config(arg: str = "") -> ConfigDict:
    """The config, changed by `name=value` pairs for the names in `ARGUMENTS`.

    `faithful=True` does more as the original (`presets.as_the_original`).
    """
    config = presets.fedaudio("speech_commands", "prompts", "generate")

    config.prompts.method = "multi_speaker"

    generate = config.generate
    generate.model = "microsoft/speecht5_tts"
    generate.samples_per_class = "1714"  # 60,000 over 35 words
    generate.max_seconds = 2.0

    federated = config.federated
    federated.partition = "natural"
    federated.rounds = 5000
    federated.cohort_size = 106  # 5 % of 2,112 speakers

    arg, faithful = presets.take_flag(arg, "faithful")
    if faithful:
        presets.as_the_original(config)
    configuration.apply_arguments(config, arg, ARGUMENTS)
    methods = presets.FEDAUDIO_METHODS
    config.compare.methods = presets.from_each_start(
        {name: methods[name] for name in ("fedavg", "fedopt")}
    )
    config.report.targets = (0.7, 0.8)
    return config
