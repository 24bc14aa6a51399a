"""Examples for the report, pictures, and sounds to hear: synthetic ones.

Real ones stand beside them where `config.report.private_examples` asks for them.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from federated import experiment
from gptfl_jax import artifacts, drawing
from gptfl_jax.data import audio, datasets, synthetic
from gptfl_jax.data.images import read_picture
from gptfl_jax.data.stored_rows import Rows
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say

# Of a data set of sounds the report shows so many classes, and has so many to hear.
_MOST_CLASSES, _MOST_HEARD = 12, 6
# Pixels of the picture of a sound.
_SIDE = 96
LONGEST_S = 1.5
"""Longest clip to hear, in seconds."""


class HeardClip(NamedTuple):
    """A clip in the report."""

    label: str
    kind: str
    """synthetic or real."""
    wav: bytes


class Examples(NamedTuple):
    """What the report shows."""

    sheets: dict[str, np.ndarray]
    """uint8 pictures [height, width, 3] by caption."""
    clips: tuple[HeardClip, ...] = ()

    @property
    def real(self) -> bool:
        """Whether some are of the clients' data."""
        return any(caption.startswith("real") for caption in self.sheets)


def load(config: ConfigDict, workdir: pathlib.Path, columns: int = 8) -> Examples:
    """Reads examples of each class; nothing where no synthetic data were made.

    Args:
        columns: examples of a class.
    """
    if not (workdir / "synthetic" / "manifest.jsonl").exists():
        return Examples({})
    source, private = experiment.load(config), config.report.private_examples
    try:
        if source.sounds is not None:
            return _sounds(source, workdir / "synthetic", columns, private)
        return Examples(_pictures(source, workdir / "synthetic", columns, private))
    except UserError as error:
        # The numbers do not need them.
        say(f"the report shows no synthetic examples: {error}")
        return Examples({})


def _pictures(
    source: datasets.Source, folder: pathlib.Path, columns: int, private: bool
) -> dict[str, np.ndarray]:
    """Synthetic as made, synthetic as the classifier sees it, real if asked for."""
    real = source.train
    class_names, (height, width) = real.class_names, real.inputs.shape[1:3]
    seen, _ = synthetic.load_synthetic(folder, source)
    made_by_class = []
    samples = artifacts.read_manifest(folder)
    for name in class_names:
        files = [sample.file for sample in samples if sample.label == name]
        picks = np.linspace(0, len(files) - 1, columns).round().astype(int)
        pictures = []
        for pick in picks if files else ():
            picture = read_picture(folder / files[pick], image_size=0, channels=3)
            pictures.append(picture.pixels)
        made_by_class.append(pictures)
    made = None
    every = [pixels for pictures in made_by_class for pixels in pictures]
    shapes = {None if pixels is None else pixels.shape for pixels in every}
    if len(shapes) == 1 and None not in shapes and all(made_by_class):
        made = np.array(made_by_class)
    sheets = {
        "synthetic, as generated": made,
        f"synthetic, as the classifier sees it ({width}x{height})": _of_each_class(
            seen.inputs, seen.labels, len(class_names), columns
        ),
    }
    if private:
        caption = f"real, of the training clients ({width}x{height})"
        sheets[caption] = _of_each_class(
            real.inputs, real.labels, len(class_names), columns
        )
    return {
        caption: drawing.grid(pictures, (32, 32), gap=2)
        for caption, pictures in sheets.items()
        if pictures is not None
    }


def _sounds(
    source: datasets.Source, folder: pathlib.Path, columns: int, private: bool
) -> Examples:
    """Waveforms and spectrograms of clips, and some to hear: real ones if asked for.

    All at the sample rate of the features, and to one scale of time.
    """
    real, rate = source.train, source.sounds.settings.sample_rate_hz
    made: dict[str, list[audio.Clip]] = {}
    for sample in artifacts.read_manifest(folder):
        made.setdefault(sample.label, []).append(audio.Clip(folder / sample.file))
    kinds = ("synthetic", "real") if private else ("synthetic",)
    waves: dict[str, list[list[np.ndarray]]] = {kind: [] for kind in kinds}
    shown = [
        name
        for label, name in enumerate(real.class_names)
        if made.get(name) and (real.labels == label).any()
    ]
    shown = [shown[i] for i in _spread(len(shown), _MOST_CLASSES)]
    for name in shown:
        rows = np.flatnonzero(real.labels == real.class_names.index(name))
        recorded = [source.sounds.clips[row] for row in rows]
        for kind in kinds:
            clips = recorded if kind == "real" else made[name]
            picked = [clips[i] for i in _spread(len(clips), columns)]
            read = [_wave(clip, rate) for clip in picked]
            waves[kind].append([wave for wave in read if wave is not None])
    every = [wave for kind in waves.values() for row in kind for wave in row]
    if not every:
        return Examples({})
    seconds = max(map(len, every)) / rate
    blank = np.full((_SIDE, _SIDE, 3), 255, np.uint8)

    def sheet(rows: list[list[np.ndarray]]) -> np.ndarray:
        pictures = np.stack([[blank] * columns] * len(rows))
        for row, of_class in enumerate(rows):
            for column, wave in enumerate(of_class):
                image = drawing.sound_picture(wave, rate, seconds, _SIDE)
                pictures[row, column] = np.asarray(image)
        return drawing.grid(pictures, (_SIDE, _SIDE), gap=2)

    scale = f"{seconds:.2g} s from left to right, 0 to {rate / 2000:g} kHz upwards"
    listed = ", ".join(shown)
    sheets = {
        f"synthetic, from top to bottom: {listed} ({scale})": sheet(waves["synthetic"])
    }
    if private:
        caption = f"real, of the training clients, likewise ({scale})"
        sheets[caption] = sheet(waves["real"])
    longest = round(LONGEST_S * rate)
    heard = [
        HeardClip(shown[row], kind, audio.encode_wav(wave[:longest], rate))
        for row in _spread(len(shown), _MOST_HEARD)
        for kind, of_kind in waves.items()
        for wave in of_kind[row][:1]
    ]
    return Examples(sheets, tuple(heard))


def _wave(clip: audio.Clip, rate: int) -> np.ndarray | None:
    """The waveform as recorded, or None where it cannot be read."""
    try:
        return audio.read(clip.path, rate, clip.start_s, clip.duration_s)
    except UserError:
        return None


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    if count <= most:
        return list(range(count))
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def _of_each_class(
    inputs: Rows, labels: np.ndarray, classes: int, count: int
) -> np.ndarray | None:
    """`count` examples of each class, spread evenly over those there are."""
    chosen = []
    for label in range(classes):
        (indices,) = np.nonzero(labels == label)
        if len(indices) == 0:
            return None
        picks = np.linspace(0, len(indices) - 1, count).round().astype(int)
        chosen.append(inputs[indices[picks]])
    return np.stack(chosen)
