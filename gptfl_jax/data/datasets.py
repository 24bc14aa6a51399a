"""Data sets as arrays: examples with labels, a source with its split, parts of it."""

import functools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, Int32, PyTree, Shaped

from gptfl_jax import user_files
from gptfl_jax.data import audio
from gptfl_jax.data.stored_rows import Rows, digests_of, join, take

# Channel means and deviations of ImageNet in 0..1, which the original uses for most
# pictures. They are public: normalising by them says nothing about private data.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Dataset(NamedTuple):
    """Labelled examples, in memory or (`StoredRows`) in files."""

    inputs: PyTree[Shaped[Rows, "examples ..."]]
    """uint8 or float32; pictures are uint8 [examples, height, width, channels], sounds
    are (features, lengths), in a test set also of segments, as
    `gptfl_jax.data.recordings.to_source` says."""
    labels: Int32[np.ndarray, " examples"]
    class_names: tuple[str, ...]
    clients: Shaped[np.ndarray, " examples"] | None = None
    """The natural client (writer, speaker) of each example, where there is one."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __repr__(self) -> str:
        each = " and ".join(
            f"{leaf.dtype}{list(leaf.shape[1:])}"
            for leaf in jax.tree.leaves(self.inputs)
        )
        return (
            f"Dataset({len(self.labels):,} examples of {each}, "
            f"{len(self.class_names):,} classes)"
        )


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

    def __repr__(self) -> str:
        return f"Source(train={self.train!r}, test={self.test!r})"


class LoadReport(NamedTuple):
    """What happened to the files that examples were read from."""

    plural: str
    """What the files hold, as "synthetic pictures"."""
    loaded: int
    left_out: tuple[tuple[str, str], ...] = ()
    """File name and reason of each file that could not be used."""

    def __str__(self) -> str:
        text = f"{self.loaded:,} {self.plural} loaded"
        if not self.left_out:
            return text
        text += f"; {len(self.left_out):,} left out:"
        shown = [
            f"\n  {user_files.printable(file)}: {reason}"
            for file, reason in self.left_out[:10]
        ]
        if len(self.left_out) > len(shown):
            shown.append(f"\n  ... and {len(self.left_out) - len(shown):,} more")
        return text + "".join(shown)


def hold_out(
    labels: Int32[np.ndarray, " examples"],
    fraction: int | float,
    seed: int,
    contents: Int[np.ndarray, " examples"] | None = None,
) -> Bool[np.ndarray, " examples"]:
    """Draws `fraction` of each class at random; where it has two, at least one is held
    out and at least one is not.

    Args:
        contents: as `contents` gives them. Examples of the same content count as one,
            of the class of the first, and are all held out or none of them is. None:
            all differ.

    Returns:
        True where held out.
    """
    first = np.arange(len(labels))
    if contents is not None:
        _, firsts, which = np.unique(contents, return_index=True, return_inverse=True)
        first = firsts[which]
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero((labels == label) & (first == np.arange(len(labels))))
        rows = generator.permutation(rows)
        most = max(len(rows) - 1, 0)
        held_out[rows[: min(max(1, round(fraction * len(rows))), most)]] = True
    return held_out[first]


def contents(
    inputs: PyTree[Shaped[Rows, "examples ..."]],
) -> Int[np.ndarray, " examples"]:
    """A number for each example, the same for examples that are equal in every bit."""
    digests = [digests_of(leaf) for leaf in jax.tree.leaves(inputs)]
    together = functools.reduce(np.strings.add, digests)
    return np.unique(together, return_inverse=True)[1]


def select(dataset: Dataset, rows: Shaped[np.ndarray, " rows"]) -> Dataset:
    """The examples at `rows` (numbers or a mask); those in files are not read."""
    clients = None if dataset.clients is None else dataset.clients[rows]
    inputs = jax.tree.map(lambda leaf: take(leaf, rows), dataset.inputs)
    return dataset._replace(inputs=inputs, labels=dataset.labels[rows], clients=clients)


def concatenate(first: Dataset, second: Dataset) -> Dataset:
    """Both data sets' examples, natural clients dropped.

    Raises:
        ValueError: their classes or example shapes differ.
    """
    if first.class_names != second.class_names:
        raise ValueError(f"classes differ: {first.class_names}, {second.class_names}")
    inputs = jax.tree.map(join, first.inputs, second.inputs)
    labels = np.concatenate([first.labels, second.labels])
    return Dataset(inputs, labels, first.class_names)
