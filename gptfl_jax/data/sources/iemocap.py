"""IEMOCAP."""

import pathlib
import re
from collections.abc import Sequence
from typing import Literal

from gptfl_jax import user_files
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

_PAGE = "https://sail.usc.edu/iemocap/iemocap_release.htm (on request)"

EMOTIONS = {
    **{"neu": "neutral", "hap": "happy", "exc": "excited", "sad": "sad"},
    **{"ang": "anger", "fru": "frustrated", "fea": "fear", "sur": "surprise"},
    **{"dis": "disgust", "oth": "other"},
}
"""What raters took, by its code; `xxx` is no agreement."""

_CLASSES = ("neutral", "happy", "sad", "anger")

# [start - end] <tab> turn <tab> code <tab> [valence, activation, dominance]
_TURN = re.compile(
    r"\[[^\]]*\]\t((Ses0([1-5]))[FM]_[A-Za-z0-9_]+)_([FM])([A-Z]*[0-9]+)"
    r"\t([a-z]{3})\t\[.*\]\s*"
)


def iemocap(
    folder: str,
    *,
    test_session: int = 1,
    emotions: Sequence[str] = _CLASSES,
    excited_is_happy: bool = True,
    dialogs: Literal["improvised", "scripted", "all"] = "improvised",
    standardise: Standardise = "clip",
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """IEMOCAP (Busso et al. 2008): talks of two actors in five sessions, ten speakers.

    The speakers are the clients. From https://sail.usc.edu/iemocap (on request, for
    research). A turn has the emotion that most raters named; turns without one are left
    out.

    Args:
        folder: holds `IEMOCAP_full_release/`, or is that folder:
            `Session<n>/dialog/EmoEvaluation/<dialog>.txt`,
            `Session<n>/sentences/wav/<dialog>/<turn>.wav`.
        test_session: of 1 to 5; its two speakers are the test set.
        emotions: the classes, in order; others are left out. The original takes these.
        excited_is_happy: counts excitement as happiness, as the original.
        dialogs: `improvised` talks, as the original, `scripted` ones, or all.
        standardise: features over the frames of a clip, or of all clips of a speaker
            in the training or the test set, as the original.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    evaluations = "Session*/dialog/EmoEvaluation/Ses*.txt"
    places = ("IEMOCAP_full_release", ".")
    root = downloads.locate(folder, places, evaluations, "IEMOCAP", _PAGE)
    checked_folds(test_session, 5)
    check_named(emotions, set(EMOTIONS.values()), "emotions", "IEMOCAP")
    kind = {"improvised": "_impro", "scripted": "_script", "all": "_"}[dialogs]
    examples = []
    for table in sorted(root.glob(evaluations)):
        for turn in _turns(table) if kind in table.stem else ():
            dialog, session, number, gender, name, code = turn.groups()
            emotion = EMOTIONS.get(code, "")
            if excited_is_happy and emotion == "excited":
                emotion = "happy"
            if emotion in emotions:
                wav = root / f"Session{number}" / "sentences" / "wav" / dialog
                clip = audio.Clip(wav / f"{dialog}_{gender}{name}.wav")
                test = int(number) == test_session
                examples.append(Example(clip, emotion, session + gender, test))
    return to_source(
        *(examples, tuple(emotions), features, flaws, cache), standardise=standardise
    )


def class_names(
    folder: str, *, emotions: Sequence[str] = _CLASSES, **options
) -> tuple[str, ...]:
    """The emotions that are told apart."""
    return tuple(emotions)


def _turns(table: pathlib.Path) -> list[re.Match]:
    turns = []
    lines = user_files.read_text(table, tables.MOST_BYTES).splitlines()
    for number, line in enumerate(lines, 1):
        if line.startswith("["):
            turns.append(_TURN.fullmatch(line))
            if turns[-1] is None:
                raise user_files.Unreadable(
                    table, f"line {number} is no turn with an emotion"
                )
    if not turns:
        raise user_files.Unreadable(table, "holds no turn with an emotion")
    return turns
