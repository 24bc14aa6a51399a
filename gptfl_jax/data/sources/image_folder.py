"""A folder of pictures a class."""

import fnmatch
import functools
import pathlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from gptfl_jax import user_files
from gptfl_jax.data import images, picture_cache, tables
from gptfl_jax.data.datasets import (
    Dataset,
    LoadReport,
    Source,
    contents,
    hold_out,
    select,
)
from gptfl_jax.data.stored_rows import Rows
from gptfl_jax.errors import UserError
from gptfl_jax.labels import KnownLabels, label_set, require_text, same_name
from gptfl_jax.progress import say
from gptfl_jax.rules import Seed


def image_folder(
    folder: str,
    *,
    image_size: int = 0,
    channels: int = 0,
    classes: Sequence[str] = (),
    labels: KnownLabels = "",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    train_list: str = "",
    test_list: str = "",
    test_fraction: int | float = 0.2,
    split_seed: Seed = 0,
) -> Source:
    """Pictures in a folder a class: `train/<class>/*` and `test/<class>/*`.

    Without these two, the folder itself holds the class folders. They are then split
    by lists, where a data set has an official split; or `test_fraction` of each class
    (at least one picture) is drawn as test set by `split_seed`, copies of a picture all
    on one side. Pictures are cropped to the square in their middle and resized; any
    mode is converted. Unreadable files and those that are no pictures are reported and
    left out; hidden folders and `__MACOSX` are no classes.

    Args:
        folder: holds the class folders.
        image_size: needed unless all pictures have the same square size.
        channels: 1 or 3; 0 is RGB unless all pictures are grey.
        classes: the class folders to use, in the order of their labels; empty takes
            all, sorted by name. With `labels`, names of its classes.
        labels: the known label set whose class names, order and prompts apply. Its
            folders are called as its classes (case, `_`, `-` and spaces do not count)
            or numbered in its order from 0 or 1; others are not read.
        include: patterns, as `*/images/*`, of the paths below `folder`, of which a
            picture must match one; `*` stands for any text, `/` too. Empty takes all.
        exclude: patterns, as `*/masks/*`, of which it must match none.
        train_list: text file with a picture a line, seen from `folder`, with or without
            its ending. Empty takes all that `test_list` does not name.
        test_list: the same of the test set. Pictures in neither list are left out.
        test_fraction: share of each class in the test set, without `test/` and lists.
        split_seed: of that draw.
    """
    root = pathlib.Path(folder)
    found = _class_folders(root, classes, labels)
    names = tuple(name for name, _ in found)

    def read(part: pathlib.Path, chosen: Collection[pathlib.Path] | None) -> Dataset:
        files, numbers, others = [], [], []
        for label, (_, place) in enumerate(found):
            pictures, rest = _files_of_class(part / place)
            pictures = [file for file in pictures if matches(file)]
            if chosen is not None:
                pictures = [file for file in pictures if file in chosen]
            files += pictures
            others += filter(matches, rest)
            numbers += [label] * len(pictures)
        pixels, kept, left_out = read_real(files, image_size, channels, part)
        endings = ", ".join(sorted(images.ENDINGS))
        reason = f"takes pictures in files that end in {endings}"
        left_out += tuple((str(file), reason) for file in others)
        if left_out:
            say(str(LoadReport("real pictures", len(pixels), left_out)))
        numbers = np.asarray(numbers, np.int32)[kept]
        for label in sorted(set(range(len(names))) - set(numbers.tolist())):
            raise UserError(
                f"{part / found[label].folder}: no picture that can be read; remove "
                "the folder, or name the classes in config.data.options.classes"
            )
        return Dataset(pixels, numbers, names)

    def matches(file: pathlib.Path) -> bool:
        path = file.relative_to(root).as_posix()
        wanted = not include or any(fnmatch.fnmatchcase(path, p) for p in include)
        return wanted and not any(fnmatch.fnmatchcase(path, p) for p in exclude)

    split = _is_split(root)
    if split and (train_list or test_list):
        raise UserError(
            "config.data.options.train_list and test_list: take a folder without train "
            f"and test in it, and {root} has both"
        )
    if split or train_list or test_list:
        if split:
            train, test = read(root / "train", None), read(root / "test", None)
        else:
            in_train, in_test = _listed(root, found, train_list, test_list)
            train, test = read(root, in_train), read(root, in_test)
        if train.inputs.shape[1:] != test.inputs.shape[1:]:
            raise UserError(
                f"{root}: train and test pictures differ in size or channels; "
                "set config.data.image_size and config.data.channels"
            )
        return Source(train, test)
    if not 0 < test_fraction < 1:
        raise UserError(
            f"config.data.options.test_fraction = {test_fraction}: takes a number "
            "between 0 and 1"
        )
    data = read(root, None)
    same = contents(data.inputs)
    held_out = hold_out(data.labels, test_fraction, split_seed, same)
    if not held_out.any():
        raise UserError(
            f"{root}: a picture a class leaves none to test on; there must be two that "
            "differ, or the folders train and test"
        )
    return Source(select(data, ~held_out), select(data, held_out))


def class_names(
    folder: str, *, classes: Sequence[str] = (), labels: str = "", **options
) -> tuple[str, ...]:
    """Those of the class folders, without reading a picture."""
    found = _class_folders(pathlib.Path(folder), classes, labels)
    return tuple(name for name, _ in found)


def known_labels(*, labels: str = "", **options) -> str:
    """The known label set that the class names are of; empty: none is named."""
    return labels


class _Class(NamedTuple):
    name: str
    folder: str


def _is_split(root: pathlib.Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


def _class_folders(
    root: pathlib.Path, classes: Sequence[str], labels: str
) -> tuple[_Class, ...]:
    """The classes of `image_folder`, in the order of their labels."""
    if not root.is_dir():
        raise UserError(f"config.data.folder: no such folder {root}")
    top = root / "train" if _is_split(root) else root
    if classes and not labels:
        folders = list(classes)
    else:
        folders = sorted(
            path.name
            for path in top.iterdir()
            if path.is_dir() and path.name[0] != "." and path.name != "__MACOSX"
        )
    if not folders:
        raise UserError(
            f"{top} holds no class folders: config.data.folder takes a folder of them, "
            "with pictures as <class>/1.jpg or train/<class>/1.jpg in it"
        )
    for name in folders:
        require_text(name)
    if not labels:
        return tuple(_Class(name, name) for name in folders)
    known = label_set(labels).classes
    if foreign := [name for name in classes if name not in known]:
        raise UserError(
            f"config.data.options.classes: {labels} has no {', '.join(foreign)}"
        )
    return tuple(
        _Class(name, _folder_of(name, known, folders, top)) for name in classes or known
    )


def _folder_of(
    name: str, known: Sequence[str], folders: Sequence[str], top: pathlib.Path
) -> str:
    """The folder of a known class: called as it is, or by its number."""
    called = [folder for folder in folders if same_name(folder, name)]
    if not any(same_name(f, other) for f in folders for other in known):
        numbers = {int(f): f for f in folders if f.isascii() and f.isdigit()}
        for first in (0, 1):
            if set(numbers) == set(range(first, first + len(known))):
                called = [numbers[known.index(name) + first]]
    if len(called) == 1:
        return called[0]
    if called:
        raise UserError(f"{top}: {' and '.join(called)} are both the class {name}")
    raise UserError(
        f"{top}: no folder of the class {name!r}, nor all of its {len(known)} classes "
        "by number; name the classes there are in config.data.options.classes"
    )


def _listed(
    root: pathlib.Path, found: Sequence[_Class], train_list: str, test_list: str
) -> tuple[set[pathlib.Path], set[pathlib.Path]]:
    """The pictures of each part, by the lists of an official split."""
    files = [file for _, place in found for file in _files_of_class(root / place)[0]]
    by_name = {file.relative_to(root).with_suffix(""): file for file in files}
    by_name |= {file.relative_to(root): file for file in files}
    folders = {place for _, place in found}

    def read(name: str) -> set[pathlib.Path]:
        text = user_files.read_text(root / name, tables.MOST_BYTES)
        lines = [pathlib.PurePosixPath(line.strip()) for line in text.splitlines()]
        # Classes that were not asked for may be listed.
        lines = [line for line in lines if line.parts and line.parts[0] in folders]
        if not lines:
            raise UserError(f"{root / name}: lists no picture of these class folders")
        if missing := [line for line in lines if line not in by_name]:
            raise UserError(
                f"{root / name}: lists {missing[0]} and {len(missing) - 1:,} more that "
                f"{root} has not: get them, or take their lines out"
            )
        return {by_name[line] for line in lines}

    train = read(train_list) if train_list else None
    test = read(test_list) if test_list else set(files) - train
    train = set(files) - test if train is None else train
    if both := sorted(train & test):
        raise UserError(
            f"{both[0]} and {len(both) - 1:,} more are in both train_list and "
            "test_list of config.data.options: take them out of one"
        )
    return train, test


def _files_of_class(
    folder: pathlib.Path,
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The pictures in a class folder and in those below, and all other files."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such class folder")
    pictures, others = [], []
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder).parts
        if any(part[0] == "." or part == "__MACOSX" for part in below):
            continue
        if file.suffix.lower() in images.ENDINGS:
            pictures.append(file)
        elif file.is_file():
            others.append(file)
    return pictures, others


def read_real(
    files: Sequence[pathlib.Path | images.Embedded],
    image_size: int,
    channels: int,
    part: pathlib.Path,
) -> tuple[Rows, list[int], tuple[tuple[str, str], ...]]:
    """Pixels of the pictures that can be read, their places, and what is left out.

    Raises:
        UserError: none can be read, or they are of several sizes and `image_size` is 0.
    """
    read = functools.partial(
        images.read_picture, image_size=image_size, channels=channels, crop=True
    )
    options = [image_size, channels, "cropped"]
    decoded, about = picture_cache.decode_files(files, read, options, part.name)
    left_out = tuple(
        (str(file), picture.error)
        for file, picture in zip(files, about, strict=True)
        if picture.error
    )
    kept = [index for index, size in enumerate(decoded.sizes) if size]
    if not kept:
        file, reason = next(iter(left_out), ("", "there is none"))
        raise UserError(
            f"{part}: no picture that can be read; the first: {file} {reason}"
        )
    if len({decoded.sizes[index] for index in kept}) > 1:
        raise UserError(
            f"{part}: pictures of several sizes; set config.data.image_size"
        )
    return decoded.take(kept), kept, left_out
