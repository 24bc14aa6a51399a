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
    Standardise,
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
# It is known to hold no sound.
_BROKEN = "1076_MTI_SAD_XX.wav"


def crema_d(
    folder: str,
    *,
    test_fold: int = 1,
    emotions: Sequence[str] = _CLASSES,
    labels: Literal["acted", "voted"] = "acted",
    actors: Literal["all", "original"] = "all",
    standardise: Standardise = "clip",
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
        actors: all 91, or the 81 whom the original finds. It counts actors from 0 and
            looks for files named 10 and that number, hence finds none of 1001 to 1009
            and not 1091, and its folds begin with actor 1000: the first tests 1010 to
            1018, the second 1019 to 1036.
        standardise: features over the frames of a clip, or of all clips of a speaker
            in the training or the test set, as the original.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    root = downloads.locate(folder, ("CREMA-D", "."), "AudioWAV", "CREMA-D", _PAGE)
    checked_folds(test_fold, 5)
    check_named(emotions, set(EMOTIONS.values()), "emotions", "CREMA-D")
    original = actors == "original"
    numbers = np.arange(91) + (1000 if original else 1001)
    tested = np.array_split(numbers, 5)[test_fold - 1]
    taken = set(range(1010, 1091) if original else numbers)
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
            if emotion in emotions and int(actor) in taken:
                found[path] = (emotion, actor)
    examples = [
        Example(audio.Clip(path), emotion, actor, int(actor) in tested)
        for path, (emotion, actor) in found.items()
    ]
    return to_source(
        *(examples, tuple(emotions), features, flaws, cache), standardise=standardise
    )


def class_names(
    folder: str, *, emotions: Sequence[str] = _CLASSES, **options
) -> tuple[str, ...]:
    """The emotions that are told apart."""
    return tuple(emotions)
