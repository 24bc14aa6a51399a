"""Data sets that are not there, in outline: as many examples, of the released shapes.

For a plan of a run on them. The arrays take no memory: all their examples are one. What
stands for pictures in files does so here.
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptfl_jax import choices, families, labels
from gptfl_jax.data import audio, picture_cache, sources
from gptfl_jax.data.datasets import Dataset, Sounds, Source
from gptfl_jax.data.stored_rows import Part, StoredRows
from gptfl_jax.errors import ConfigError, UserError


class _Released(NamedTuple):
    """What is known of a data set without its files."""

    train: int
    test: int
    pixels: int = 0
    """Side of its pictures; 0: they differ, or it holds sounds."""
    seconds: float = 0.0
    """Of its longest recording."""
    clients: int = 0
    """Speakers; 0: unknown, or there are none."""
    channels: int = 3
    also: Sequence[str] = ()
    """Classes beside those of the label set of its name."""


# By the known label set, else by the source. Of folds and speakers, the largest
# training set.
_RELEASED = {
    "cifar10": _Released(50_000, 10_000, pixels=32),
    "cifar100": _Released(50_000, 10_000, pixels=32),
    "caltech101": _Released(3_030, 5_647),
    "mnist": _Released(60_000, 10_000, pixels=28, channels=1),
    "emnist": _Released(697_932, 116_323, pixels=28, channels=1),
    "fashion_mnist": _Released(60_000, 10_000, pixels=28, channels=1),
    "svhn": _Released(73_257, 26_032, pixels=32),
    # That of TensorFlow Federated.
    "femnist": _Released(671_585, 77_483, pixels=28, clients=3_400, channels=1),
    "flowers102": _Released(1_020, 6_149),
    "food101": _Released(75_750, 25_250),
    "eurosat": _Released(21_600, 5_400, pixels=64),
    "covid_radiography": _Released(12_122, 3_031, pixels=299),
    "speech_commands": _Released(
        84_843, 11_005, seconds=1.0, clients=2_112, also=("silence",)
    ),
    "esc50": _Released(1_600, 400, seconds=5.0),
    "urbansound8k": _Released(7_940, 792, seconds=4.0),
    "crema_d": _Released(3_930, 970, seconds=5.0, clients=73),
    # About: improvised talks, and the speakers of more than ten clips.
    "iemocap": _Released(2_400, 540, seconds=30.0, clients=8),
    "meld": _Released(9_000, 2_300, seconds=40.0, clients=86),
    "fsdd": _Released(2_500, 500, seconds=0.8, clients=5),
    "drumkits": _Released(326, 89, seconds=1.0, clients=10),
}

# Sources whose pictures are kept decoded in files.
_DECODED = ("image_folder", "picture_table", "tfds")


def load(
    name: str,
    folder: str = "",
    /,
    *,
    image_size: int = 0,
    channels: int = 0,
    **options,
) -> tuple[Source, str]:
    """Loads a source where its files are there, else outlines it; downloads nothing.

    Args:
        name, folder, image_size, channels, options: as `sources.load` takes them.

    Returns:
        the source, and where it is outlined, why.

    Raises:
        ConfigError: an option that the source does not take.
        UserError: the files are missing, and of their number nothing is known.
    """
    if "download" in options:
        options |= {"download": False}
    try:
        source = sources.load(
            name, folder, image_size=image_size, channels=channels, **options
        )
    except ConfigError:
        raise
    except UserError as error:
        known = sources.known_labels(name, **options)
        if known not in _RELEASED:
            raise
        source = _outline(name, known, _RELEASED[known], image_size, channels, options)
        return source, str(error).partition(";")[0].partition(", hence")[0]
    return source, ""


def class_names(name: str, folder: str = "", /, **options) -> tuple[str, ...]:
    """As `sources.class_names`, but of the label set where the files are missing."""
    if "download" in options:
        options |= {"download": False}
    try:
        return sources.class_names(name, folder, **options)
    except ConfigError:
        raise
    except UserError:
        known = sources.known_labels(name, **options)
        if known not in labels.known_data_sets():
            raise
        return labels.label_set(known).classes


def _outline(
    name: str,
    known: str,
    released: _Released,
    image_size: int,
    channels: int,
    options: dict,
) -> Source:
    if known in labels.known_data_sets():
        classes = (*labels.label_set(known).classes, *released.also)
    else:
        # Of their own files these sources know the classes.
        classes = sources.class_names(name, "no folder", **options)
    if "writers" in options and released.clients:
        chosen = min(options["writers"] or released.clients, released.clients)
        share = chosen / released.clients
        released = released._replace(
            train=round(share * released.train),
            test=round(share * released.test),
            clients=chosen,
        )
    sounds, segments = None, 0
    if released.seconds:
        if segment_s := options.get("segment_s"):
            rest = max(0.0, released.seconds - segment_s)
            segments = 1 + int(rest / options.get("segment_hop_s", 1.0))
            seconds = min(segment_s, released.seconds)
            train = segments * released.train
            released = released._replace(train=train, seconds=seconds)
        module = sys.modules[choices.find(families.SOURCE, name).__module__]
        fields = getattr(module, "FEATURES", {}) | dict(options.get("features") or {})
        settings = audio.resolved(audio.FeatureSettings(**fields))
        sounds = Sounds(settings)
        longest = min(settings.max_duration_s or released.seconds, released.seconds)
        frames = 1 + int(longest * settings.sample_rate_hz) // settings.hop
        shape: tuple[int, ...] = frames, settings.num_bands
    else:
        side = image_size or released.pixels
        if not side:
            raise ConfigError(
                f"config.data.image_size = 0: {known} has pictures of several sizes"
            )
        shape = side, side, channels or released.channels

    def part(*counts: int) -> Dataset:
        count = counts[0]
        numbers = np.arange(count, dtype=np.int32)
        dtype = np.float32 if sounds else np.uint8
        inputs = np.broadcast_to(np.zeros((), dtype), (*counts, *shape))
        if name in _DECODED and count > picture_cache.BLOCK:
            inputs = StoredRows([Part(inputs)])
        if sounds:
            inputs = inputs, np.full(counts, shape[0], np.int32)
        clients = numbers % released.clients if released.clients else None
        return Dataset(inputs, numbers % len(classes), classes, clients)

    constants = {"mean": (), "std": ()} if sounds else {}
    test = part(released.test, segments) if segments else part(released.test)
    return Source(part(released.train), test, sounds=sounds, **constants)
