"""ESC-50."""

from collections.abc import Sequence

from gptfl_jax import labels
from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import Example, Options, checked_folds, to_source

_PAGE = "https://github.com/karolpiczak/ESC-50/archive/master.zip"


def esc50(
    folder: str,
    *,
    test_folds: int | Sequence[int] = 5,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """ESC-50 (Piczak 2015): 2,000 clips of 5 s of 50 environmental sounds, 5 folds.

    From https://github.com/karolpiczak/ESC-50 (CC BY-NC 3.0). Clips were cut from 1 or
    more seconds of a recording of Freesound; the recordings are the natural clients, to
    be dealt out as they are or ignored in favour of a partition by labels.

    Args:
        folder: holds `ESC-50-master/`, or is that folder: `meta/esc50.csv`, `audio/`.
        test_folds: one or several of 1 to 5.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    places = ("ESC-50-master", "ESC-50", ".")
    root = downloads.locate(folder, places, "meta/esc50.csv", "ESC-50", _PAGE)
    test_folds = checked_folds(test_folds, 5)
    names = labels.label_set("esc50").classes
    columns = {
        "filename": tables.file_name,
        "fold": tables.whole_number(1, 5),
        "category": tables.class_of(names),
        "src_file": tables.text,
    }
    examples = [
        Example(
            audio.Clip(root / "audio" / row["filename"]),
            row["category"],
            row["src_file"],
            row["fold"] in test_folds,
        )
        for row in tables.read(root / "meta" / "esc50.csv", columns)
    ]
    return to_source(examples, names, features, flaws, cache)
