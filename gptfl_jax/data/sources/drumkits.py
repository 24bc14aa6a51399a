"""Drum kits of the drum machine Hydrogen."""

import pathlib
import re
import xml.parsers.expat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gptfl_jax import labels, user_files
from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import Example, Options, check_named, to_source
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say

FEATURES = {
    **{"num_mels": 64, "max_duration_s": 1.0, "least_duration_s": 1.0},
    **{"range_db": 60.0, "by_band": False},
}
"""What it takes of `audio.FeatureSettings`, by default."""

WORDS = {
    "kick": r"\bkick|\bbass ?drum",
    "snare": r"\bsnare",
    "tom": r"\btom",
    "hi_hat": r"\bhi ?hat|\bhat|\bo?hh\b",
    "crash": r"\bcrash",
    "ride": r"\bride",
}
"""What an instrument's name has, in small letters, where it is of a class."""

# Struck elsewhere, or more than once: no clip of the class as the others are.
_ELSEWHERE = r"\bbell|\bcup|\broll"
_MOST_BYTES = 2**24


class Instrument(NamedTuple):
    """What a kit says of an instrument."""

    name: str
    files: tuple[str, ...]
    """Recordings beside the kit's file, soft to hard."""


def drumkits(
    folder: str,
    *,
    kits: Sequence[str] = (),
    test_kits: str | Sequence[str] = (),
    least_classes: int = 3,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """Strokes of drums and cymbals in Hydrogen's kits, six classes; kits are clients.

    Debian's package hydrogen-drumkits has 12 kits with such strokes, under GPL-2,
    CC BY 3.0 and CC BY-SA 3.0. An instrument is of the class that its name has a word
    of (`WORDS`); one whose name has words of no class or two, a bell, or a roll is left
    out. Features are by default of a second, the silence behind a stroke
    included: 64 bands of 60 dB, standardised together.

    Args:
        folder: holds `drumkits/`, or is that folder: `<kit>/drumkit.xml` and its
            recordings.
        kits: those that count, in training and test; empty is all.
        test_kits: a name or several: the test set is all their strokes; empty is every
            fourth kit, in the order of their names.
        least_classes: kits with fewer classes are left out.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 40}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    features = FEATURES | dict(features or {})
    root = downloads.locate(
        folder,
        ("drumkits", "."),
        "*/drumkit.xml",
        "kits of Hydrogen",
        "Debian's package hydrogen-drumkits, whose folder is /usr/share/hydrogen/data",
    )
    found: dict[str, list[Example]] = {}
    few = []
    for path in sorted(root.glob("*/drumkit.xml")):
        kit = path.parent.name
        strokes = dict(_strokes(path))
        if len(set(strokes.values())) < least_classes:
            few.append(kit)
            continue
        found[kit] = [
            Example(
                # What is behind is not decoded: cymbals sound for many seconds.
                audio.Clip(path.parent / file, duration_s=features["max_duration_s"]),
                label,
                kit,
                False,
            )
            for file, label in strokes.items()
        ]
    if few:
        say(f"left out kits of fewer than {least_classes} classes: {', '.join(few)}")
    if isinstance(test_kits, str):
        test_kits = (test_kits,)
    for option, names in (("kits", kits), ("test_kits", test_kits)):
        if kits and option == "test_kits":
            found = {kit: found[kit] for kit in found if kit in kits}
        check_named(names, set(found), option, root)
    tested = set(test_kits or tuple(found)[3::4])
    examples = [
        example._replace(test=kit in tested)
        for kit, strokes in found.items()
        for example in strokes
    ]
    say(f"{len(examples):,} strokes of {len(found)} kits, {len(tested)} of them tested")
    names = labels.label_set("drumkits").classes
    return to_source(examples, names, features, flaws, cache)


def class_of(instrument: str) -> str | None:
    """The class of an instrument by its name; None if it has none of ours.

    >>> class_of("Pearl Snare Rimshot"), class_of("Crash/Ride"), class_of("OHH")
    ('snare', None, 'hi_hat')
    """
    text = re.sub(r"\(.*?\)", "", instrument)  # makers and sizes
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    text = re.sub(r"[^a-z]+", " ", text)
    classes = [name for name, words in WORDS.items() if re.search(words, text)]
    return classes[0] if len(classes) == 1 and not re.search(_ELSEWHERE, text) else None


def _strokes(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Recordings of a kit and their classes, in the kit's order."""
    seen: dict[str, str] = {}
    for name, files in read_kit(path):
        label = class_of(name)
        for file in files if label else ():
            # Kits repeat a recording for another strength, not for another class.
            if seen.setdefault(file, label) != label:
                raise UserError(
                    f"{path}: {file} is of a {seen[file]} and of a {label}: take one "
                    "instrument away"
                )
            yield file, label


def read_kit(path: pathlib.Path) -> list[Instrument]:
    """The instruments of a `drumkit.xml` that have a name and recordings.

    Raises:
        UserError: the file is damaged, has a document type (which may define entities
            that grow without end), or names a recording outside its folder.
    """
    content = user_files.read_bytes(path, _MOST_BYTES)
    try:
        return _instruments(content)
    except (ValueError, LookupError, xml.parsers.expat.ExpatError) as error:
        reason = f"is no drum kit ({user_files.brief(error)})"
        raise user_files.Unreadable(path, reason) from error


def _instruments(content: bytes) -> list[Instrument]:
    instruments: list[Instrument] = []
    tags: list[str] = []
    name, files, text = "", [], []

    def start(tag, attributes):
        nonlocal name, files
        tags.append(tag)
        text.clear()
        if tag == "instrument":
            name, files = "", []

    def end(tag):
        nonlocal name
        inside, words = tags[-3:], "".join(text).strip()
        if inside[-2:] == ["instrument", "name"]:
            name = words
        elif words and tag == "filename" and "instrument" in inside[:2]:
            files.append(tables.file_name(words))
        elif tag == "instrument" and name and files:
            instruments.append(Instrument(name, tuple(files)))
        tags.pop()
        text.clear()

    def refuse(*declaration):
        raise ValueError("it has a document type")

    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)
    return instruments
