"""Data sets as arrays: examples with labels, and a source with its split."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, PyTree, Shaped

from gptfl_jax.data import audio

# Channel means and deviations of ImageNet in 0..1, which the original uses for every
# picture. They are public: normalising by them says nothing about private data.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Dataset(NamedTuple):
    """Labelled examples in memory."""

    inputs: PyTree[Shaped[np.ndarray, "examples ..."]]
    """uint8 or float32; pictures are uint8 [examples, height, width, channels], sounds
    are (features, lengths)."""
    labels: Int32[np.ndarray, " examples"]
    class_names: tuple[str, ...]
    clients: Shaped[np.ndarray, " examples"] | None = None
    """The natural client (writer, speaker) of each example, where there is one."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Sounds(NamedTuple):
    """How recordings became the features of a source."""

    settings: audio.FeatureSettings = audio.FeatureSettings()
    cache: str = ""
    """As `audio.extract` takes it."""
    clips: tuple[audio.Clip, ...] = ()
    """The recordings of the training set, in its order."""


class Source(NamedTuple):
    """A data set with its split, and the constants its pictures are normalised by."""

    train: Dataset
    test: Dataset
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, of pixels scaled to 0..1; empty where nothing is to be done."""
    std: tuple[float, ...] = IMAGENET_STD
    sounds: Sounds | None = None
    """Of a data set of sounds."""
