"""CREMA-D."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import (
    Example,
    Options,
    check_named,
    checked_folds,
    to_source,
)

_PAGE = "https://github.com/CheyneyComputerScience/CREMA-D (needs git-lfs)"

EMOTIONS = {
    **{"NEU": "neutral", "HAP": "happy", "SAD": "sad"},
    **{"ANG": "anger", "DIS": "disgust", "FEA": "fear"},
}
_CLASSES = ("neutral", "happy", "sad", "anger")
_ACTORS = range(1001, 1092)
# It is known to hold no sound.
_BROKEN = "1076_MTI_SAD_XX.wav"


def crema_d(
    folder: str,
    *,
    test_fold: int = 1,
    emotions: Sequence[str] = _CLASSES,
    labels: Literal["acted", "voted"] = "acted",
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """CREMA-D (Cao et al. 2014): sentences in six emotions by 91 actors, the clients.

    From https://github.com/CheyneyComputerScience/CREMA-D (Open Database License).

    Args:
        folder: holds `CREMA-D/`, or is that folder: `AudioWAV/`, and
            `processedResults/summaryTable.csv` for the votes.
        test_fold: of 1 to 5: the actors in order of their number are cut into five
            folds, the first of 19 actors and the others of 18.
        emotions: the classes, in order; others are left out. The original takes these.
        labels: `acted` is what the actor was told to show; `voted` is what most of
            those who saw and heard it named, as in the original, and clips without a
            single winner are left out.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    root = downloads.locate(folder, ("CREMA-D", "."), "AudioWAV", "CREMA-D", _PAGE)
    checked_folds(test_fold, 5)
    check_named(emotions, set(EMOTIONS.values()), "emotions", "CREMA-D")
    voted = {}
    if labels == "voted":
        initials = {name[0].upper(): name for name in EMOTIONS.values()}
        table = root / "processedResults" / "summaryTable.csv"
        for row in tables.read(table, {"FileName": str, "MultiModalVote": str}):
            voted[row["FileName"]] = initials.get(row["MultiModalVote"], "")
    found = {}
    for path in sorted((root / "AudioWAV").glob("*.wav")):
        match = re.fullmatch(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]{2}\.wav", path.name)
        if match and path.name != _BROKEN:
            actor, acted = match.groups()
            emotion = EMOTIONS.get(acted, "")
            if labels == "voted":
                emotion = voted.get(path.stem, "")
            if emotion in emotions:
                found[path] = (emotion, actor)
    tested = np.array_split(_ACTORS, 5)[test_fold - 1]
    examples = [
        Example(audio.Clip(path), emotion, actor, int(actor) in tested)
        for path, (emotion, actor) in found.items()
    ]
    return to_source(examples, tuple(emotions), features, flaws, cache)


def class_names(
    folder: str, *, emotions: Sequence[str] = _CLASSES, **options
) -> tuple[str, ...]:
    """The emotions that are told apart."""
    return tuple(emotions)
