"""Small data sets of sounds: digits are tones, speakers differ in loudness, length."""

import pathlib
from collections.abc import Sequence

import numpy as np
import soundfile

from gptfl_jax import artifacts

SPEAKERS = ("anna", "bert", "cleo")


def write_tone(
    path: pathlib.Path, digit: int, speaker: int, take: int, rate: int
) -> None:
    """0.1 to 0.14 s in a little noise: half of it 300 + 300 `digit` Hz, half silence.

    A tone that does not end is nothing in standardised features.
    """
    time = np.arange(round((0.1 + 0.02 * speaker) * rate)) / rate
    wave = (0.2 + 0.1 * speaker) * np.sin(2 * np.pi * (300 + 300 * digit) * time)
    wave[len(wave) // 2 :] = 0
    noise = np.random.default_rng([digit, speaker, take]).normal(size=len(wave))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave + 0.01 * noise, rate, subtype="PCM_16")


def write_fsdd(
    folder: pathlib.Path, takes: Sequence[int] = (0, 5, 6, 7), digits: int = 10
) -> None:
    """The layout of FSDD, of three speakers."""
    for digit in range(digits):
        for number, speaker in enumerate(SPEAKERS):
            for take in takes:
                name = f"{digit}_{speaker}_{take}.wav"
                write_tone(folder / "recordings" / name, digit, number, take, 8000)


def write_synthetic(workdir: pathlib.Path, per_class: int, digits: int = 10) -> None:
    """What stage 1 leaves, at 16 kHz."""
    samples = []
    for index in range(per_class):
        for digit in range(digits):
            file = f"{digit}/{digit}_{index:05d}.wav"
            path = workdir / "synthetic" / file
            write_tone(path, digit, index % 3, 100 + index, 16_000)
            samples.append(artifacts.Sample(file, str(digit), "", index, None, "m", 0))
    artifacts.write_manifest(workdir / "synthetic", samples)


def write_drumkits(
    folder: pathlib.Path, kits: int = 4, strokes: int = 1, classes: Sequence[str] = ()
) -> None:
    """The layout of Hydrogen's kits: strokes are tones, a class a pitch."""
    for kit in range(kits):
        root = folder / "drumkits" / f"kit{kit}"
        instruments = ""
        for number, name in enumerate(classes or ("kick", "snare")):
            layers = ""
            for take in range(strokes):
                file = f"{name}-{take}.wav"
                write_tone(root / file, number, kit, take, 16_000)
                layers += f"<layer><filename>{file}</filename></layer>"
            instruments += f"<instrument><name>{name}</name>{layers}</instrument>"
        content = f"<drumkit_info>{instruments}</drumkit_info>"
        (root / "drumkit.xml").write_text(content)
