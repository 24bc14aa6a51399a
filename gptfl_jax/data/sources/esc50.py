"""ESC-50."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from gptfl_jax import labels
from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import Example, Options, checked_folds, to_source
from gptfl_jax.errors import UserError

_PLACES, _TABLE = ("ESC-50-master", "ESC-50", "."), "meta/esc50.csv"
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
    be dealt out as they are or ignored in favour of a partition by labels. The classes
    are those that the table names, in the order of their targets.

    Args:
        folder: holds `ESC-50-master/`, or is that folder: `meta/esc50.csv`, `audio/`.
        test_folds: one or several of 1 to 5.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    root = downloads.locate(folder, _PLACES, _TABLE, "ESC-50", _PAGE)
    test_folds = checked_folds(test_folds, 5)
    columns = {
        "filename": tables.file_name,
        "fold": tables.whole_number(1, 5),
        "src_file": tables.text,
    }
    rows, names = _read(root / _TABLE, columns)
    examples = [
        Example(
            audio.Clip(root / "audio" / row["filename"]),
            row["category"],
            row["src_file"],
            row["fold"] in test_folds,
        )
        for row in rows
    ]
    return to_source(examples, names, features, flaws, cache)


def class_names(folder: str, **options) -> tuple[str, ...]:
    """Those of the table, without hearing a clip; the release's where it is missing."""
    try:
        root = downloads.locate(folder, _PLACES, _TABLE, "ESC-50", _PAGE)
    except UserError:
        return labels.label_set("esc50").classes
    return _read(root / _TABLE, {})[1]


def _read(
    path: pathlib.Path, columns: dict[str, Callable[[str], Any]]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The rows with these columns and `category`, and the classes by target."""
    names: dict[int, str] = {}
    targets: dict[str, int] = {}

    def check(row):
        target, name = row["target"], row["category"]
        if names.setdefault(target, name) != name:
            raise ValueError(
                f"category = {name!r}: rows before call target {target} "
                f"{names[target]!r}"
            )
        if targets.setdefault(name, target) != target:
            raise ValueError(
                f"target = {target}: rows before give {name!r} target {targets[name]}"
            )

    columns |= {"target": tables.whole_number(0, 9999), "category": _class_name}
    rows = tables.read(path, columns, check)
    return rows, tuple(names[target] for target in sorted(names))


def _class_name(text: str) -> str:
    try:
        labels.require_text(tables.text(text))
    except UserError as error:
        raise ValueError("takes words in UTF-8 without control characters") from error
    return text
