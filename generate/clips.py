"""What the programs that make sounds share."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from generate import samples
from gptfl_jax import drawing
from gptfl_jax.data import audio
from gptfl_jax.errors import UserError


def draw_preview(shown: Mapping[str, Sequence[pathlib.Path]]) -> samples.Preview:
    """Waveforms and spectrograms of clips, all to one scale of time."""
    waves: dict[str, list[np.ndarray]] = {name: [] for name in shown}
    broken = []
    for name, files in shown.items():
        for file in files:
            try:
                waves[name].append(audio.read(file))
            except UserError as error:
                broken.append(str(error))
    rate = audio.SAMPLE_RATE_HZ
    seconds = max((len(w) for each in waves.values() for w in each), default=0) / rate
    rows = [
        (name, [drawing.sound_picture(wave, rate, seconds) for wave in each])
        for name, each in waves.items()
    ]
    return samples.Preview(drawing.contact_sheet(rows, tile=128), broken)
