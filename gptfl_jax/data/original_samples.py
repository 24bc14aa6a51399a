"""Samples in a folder that the original's scripts made: the class is in their names."""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from gptfl_jax.labels import known_data_sets, label_set, same_name

# <device>_<j>, behind one of `_labels`.
_NUMBERED = re.compile(r"(?P<name>.+)_\d+_\d+", re.DOTALL)
_FORMS = "<class>_train_<device>_<number> or <class>_add_<device>_<number>"
# What we put beside samples, and is none.
_PREVIEW = "preview.png"


def list_original(
    folder: pathlib.Path, class_names: Sequence[str], endings: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The samples in a folder without a manifest, sorted by name.

    They lie in a folder a class; or their own names are `<class>_train_<device>_<j>`,
    the same with `_<domain>`, `_<domain>_add` or in place of `_train` with `_add`. A
    class is recognised as a whole, but for case, article, `_`, `-` and spaces, or by
    the words that prompts have for it; where several could be meant ("toy" and
    "toy_train"), it is the longest. The original looks for the class name anywhere in
    the file's, and mixes up "car" and "scar".

    Args:
        class_names: those of the data set.
        endings: of the files, as ".png".

    Returns:
        file and class of each sample; file and reason of what is left out.
    """
    spellings = _spellings(class_names)
    found, left_out = [], []
    for path in sorted(_files(folder)):
        if path.suffix.lower() not in endings or path.name == _PREVIEW:
            continue
        file = path.relative_to(folder).as_posix()
        within = () if path.parent == folder else (path.parent.name,)
        labels = (*within, *_labels(path.stem))
        classes = [name for label in labels for name in _classes(label, spellings)]
        if classes:
            found.append((file, classes[0]))
        elif labels:
            left_out.append(
                (file, f"label {(within or labels[-1:])[0]!r} is not a class")
            )
        else:
            left_out.append((file, f"is not named {_FORMS}, nor in a folder a class"))
    return found, left_out


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        inside = path.iterdir() if path.is_dir() else (path,)
        yield from (p for p in inside if p.is_file() and p.name[0] != ".")


def _labels(stem: str) -> list[str]:
    """What may be the class in a file's name, the longest first."""
    match = _NUMBERED.fullmatch(stem)
    if match is None:
        return []
    name = match["name"]
    labels = {name[: each.start()] for each in re.finditer("_train(?=_|$)", name)}
    if name.endswith("_add"):
        labels.add(name.removesuffix("_add"))
    return sorted(filter(None, labels), key=len, reverse=True)


def _spellings(class_names: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Each class's name, and the words of prompts where it is of a known data set."""
    for known in map(label_set, known_data_sets()):
        if set(class_names) <= set(known.classes):
            return {name: (name, known.phrases[name]) for name in class_names}
    return {name: (name,) for name in class_names}


def _classes(label: str, spellings: Mapping[str, Sequence[str]]) -> list[str]:
    for which in (0, 1):  # names before words
        same = [
            name
            for name, texts in spellings.items()
            if any(same_name(label, text) for text in texts[which : which + 1])
        ]
        if same:
            return same
    return []
