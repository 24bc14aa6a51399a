"""MELD."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Literal

from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import (
    Example,
    Options,
    Standardise,
    long_enough,
    to_source,
)
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say
from gptfl_jax.rules import NonNegative, PositiveCount

_PAGE = "https://affective-meld.github.io (MELD.Raw.tar.gz)"

CLASSES = {
    "sentiment": ("neutral", "positive", "negative"),
    "emotion": (
        *("neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"),
    ),
}
"""Names of the classes, by what is told."""

# Of each part, its folder of clips.
_CLIPS = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
# What the tables call several people, or no one in particular.
_NO_ONE = ("All", "Man", "Policeman", "Tag", "Woman")


def meld(
    folder: str,
    *,
    task: Literal["sentiment", "emotion"] = "sentiment",
    test_list: Literal["test", "dev"] = "test",
    min_clips: PositiveCount = 11,
    everyone: bool = False,
    min_duration_s: NonNegative = 0.1,
    standardise: Standardise = "clip",
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """MELD (arXiv 1810.02508): 13,708 lines of a comedy series, told apart by feeling.

    Clients are the speakers. From https://affective-meld.github.io; the clips come as
    videos, of which ffmpeg takes the sound:
    `for i in *.mp4; do ffmpeg -i $i waves/${i%.mp4}.wav; done`. Clips that are missing
    are left out, and counted: some of the videos are damaged in the release.

    Args:
        folder: holds, itself or in `MELD.Raw/`, `train_sent_emo.csv` and
            `test_sent_emo.csv`; and beside them or in the folder,
            `train_splits/waves/dia<n>_utt<n>.wav` and
            `output_repeated_splits_test/waves/`.
        task: the classes are 3 sentiments, as in the original, or 7 emotions.
        test_list: the test set, `test` or `dev`, which lies in `dev_splits_complete/`.
        min_clips: of a speaker in a part; those with fewer are left out of it. The
            original takes more than 10.
        everyone: whether those are speakers too whom the table calls All, Man,
            Policeman, Tag and Woman. The original leaves them out.
        min_duration_s: shorter clips are left out.
        standardise: features over the frames of a clip, or of all clips of a speaker
            in the training or the test set, as the original.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    places = (".", "MELD.Raw")
    examples: list[Example] = []
    missing = 0
    for part in ("train", test_list):
        name = f"{part}_sent_emo.csv"
        table = downloads.locate(folder, places, name, "MELD", _PAGE) / name
        clips = _clips(pathlib.Path(folder), places, part)
        found = []
        for row in tables.read(table, _columns(task)):
            utterance = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}.wav"
            clip = audio.Clip(clips / utterance)
            label, speaker = row[task.capitalize()], row["Speaker"]
            if not (clips / utterance).is_file():
                missing += 1
            elif everyone or speaker not in _NO_ONE:
                found.append(Example(clip, label, speaker, part == test_list))
        lines = collections.Counter(example.client for example in found)
        examples += [e for e in found if lines[e.client] >= min_clips]
    if missing:
        say(f"MELD: left out {missing:,} clips that its tables name and are not there")
    examples = long_enough(examples, min_duration_s)
    return to_source(
        *(examples, CLASSES[task], features, flaws, cache), standardise=standardise
    )


def class_names(folder: str, *, task: str = "sentiment", **options) -> tuple[str, ...]:
    """The classes of a task."""
    return CLASSES[task]


def _columns(task: str) -> dict:
    number = tables.whole_number(0, 9999)
    return {
        "Speaker": tables.text,
        task.capitalize(): tables.class_of(CLASSES[task]),
        "Dialogue_ID": number,
        "Utterance_ID": number,
    }


def _clips(folder: pathlib.Path, places: Sequence[str], part: str) -> pathlib.Path:
    inside = [folder / place / _CLIPS[part] / "waves" for place in places]
    for clips in inside:
        if clips.is_dir():
            return clips
    raise UserError(
        f"config.data.folder = {str(folder)!r}: holds no {_CLIPS[part]}/waves, hence "
        f"no clips of MELD: get them from {_PAGE}, unpack {part}.tar.gz in it, and in "
        f"{_CLIPS[part]}: mkdir waves; for i in *.mp4; do ffmpeg -i $i "
        "waves/${i%.mp4}.wav; done"
    )
