"""UrbanSound8K."""

from collections.abc import Sequence

from gptfl_jax import labels
from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import (
    Example,
    Options,
    checked_folds,
    long_enough,
    to_source,
)
from gptfl_jax.rules import NonNegative, Positive

# The checksum is the one that Zenodo publishes.
_RELEASE = downloads.Release(
    "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz",
    "md5",
    "9aa69802bbf37fb986f71ec1483a196e",
)


def urbansound8k(
    folder: str,
    *,
    test_folds: int | Sequence[int] = 10,
    min_duration_s: NonNegative = 0.1,
    segment_s: NonNegative = 0.0,
    segment_hop_s: Positive = 1.0,
    download: bool = False,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """UrbanSound8K (Salamon et al. 2014): 8,732 clips of up to 4 s in 10 classes.

    They come in 10 folds, with all that was cut from one recording of Freesound in one
    of them; the recordings are the natural clients.

    Args:
        folder: holds `UrbanSound8K/`, or is that folder: `metadata/UrbanSound8K.csv`,
            `audio/fold<n>/`.
        test_folds: one or several of 1 to 10.
        min_duration_s: shorter clips are left out, and counted; the original's limit is
            0.1 s.
        segment_s: clips are cut into segments of so many seconds, of which each is a
            training example, and a clip is tested by all of its own; the original takes
            3. 0: clips as they are.
        segment_hop_s: seconds from the start of a segment to the next.
        download: gets the data set (6 GB) where the folder lacks it. Its licence, CC
            BY-NC 4.0, forbids commercial use.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    table = "metadata/UrbanSound8K.csv"
    root = downloads.locate(
        folder,
        ("UrbanSound8K", "."),
        table,
        "UrbanSound8K",
        f"{_RELEASE.url} (or set config.data.options.download=True)",
        _RELEASE if download else None,
        "UrbanSound8K",
    )
    test_folds = checked_folds(test_folds, 10)
    names = labels.label_set("urbansound8k").classes
    columns = {
        "slice_file_name": tables.file_name,
        "fsID": tables.text,
        "start": tables.number,
        "end": tables.number,
        "fold": tables.whole_number(1, 10),
        "classID": tables.whole_number(0, len(names) - 1),
    }
    examples, durations_s = [], []
    for row in tables.read(root / table, columns):
        path = root / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
        label, test = names[row["classID"]], row["fold"] in test_folds
        examples.append(Example(audio.Clip(path), label, row["fsID"], test))
        durations_s.append(row["end"] - row["start"])
    examples = long_enough(examples, min_duration_s, durations_s)
    return to_source(examples, names, features, flaws, cache, segment_s, segment_hop_s)
