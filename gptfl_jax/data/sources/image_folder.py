"""A folder of pictures a class."""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from gptfl_jax.data import images
from gptfl_jax.data.datasets import Dataset, LoadReport, Source, hold_out, select
from gptfl_jax.errors import UserError
from gptfl_jax.labels import require_text
from gptfl_jax.rules import Seed

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


def image_folder(
    folder: str,
    *,
    image_size: int = 0,
    channels: int = 0,
    classes: Sequence[str] = (),
    test_fraction: int | float = 0.2,
    split_seed: Seed = 0,
) -> Source:
    """Pictures in a folder a class: `train/<class>/*` and `test/<class>/*`.

    Without these two, the folder itself holds the class folders, and `test_fraction`
    of each class (at least one picture) is drawn as test set by `split_seed`. Pictures
    are cropped to the square in their middle and resized; any mode is converted.
    Unreadable files and those that are no pictures are reported and left out; hidden
    folders and `__MACOSX` are no classes.

    Args:
        folder: holds the class folders.
        image_size: needed unless all pictures have the same square size.
        channels: 1 or 3; 0 is RGB unless all pictures are grey.
        classes: the class folders to use, in the order of their labels; empty takes
            all, sorted by name.
        test_fraction: share of each class in the test set, without `test/`.
        split_seed: of that draw.
    """
    root = pathlib.Path(folder)
    names = _class_folders(root, classes)
    split = _is_split(root)

    def read(part: pathlib.Path) -> Dataset:
        files, labels, others = [], [], []
        for label, name in enumerate(names):
            pictures, rest = _files_of_class(part / name)
            files += pictures
            others += rest
            labels += [label] * len(pictures)
        pixels, kept, left_out = _read_real(files, image_size, channels, part)
        endings = ", ".join(sorted(_PICTURE_SUFFIXES))
        reason = f"takes pictures in files that end in {endings}"
        left_out += tuple((str(file), reason) for file in others)
        if left_out:
            print(LoadReport(len(pixels), left_out, "real pictures"), flush=True)
        labels = np.asarray(labels, np.int32)[kept]
        for label in sorted(set(range(len(names))) - set(labels.tolist())):
            raise UserError(
                f"{part / names[label]}: no picture that can be read; remove the "
                "folder, or name the classes in config.data.options.classes"
            )
        return Dataset(pixels, labels, names)

    if split:
        train, test = read(root / "train"), read(root / "test")
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
    data = read(root)
    held_out = hold_out(data.labels, test_fraction, split_seed)
    if not held_out.any():
        raise UserError(
            f"{root}: a picture a class leaves none to test on; there must be two, or "
            "the folders train and test"
        )
    return Source(select(data, ~held_out), select(data, held_out))


def class_names(
    folder: str, *, classes: Sequence[str] = (), **options
) -> tuple[str, ...]:
    """Those of the class folders, without reading a picture."""
    return _class_folders(pathlib.Path(folder), classes)


def _is_split(root: pathlib.Path) -> bool:
    return (root / "train").is_dir() and (root / "test").is_dir()


def _class_folders(root: pathlib.Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the class folders of `image_folder`, in the order of their labels."""
    if not root.is_dir():
        raise UserError(f"config.data.folder: no such folder {root}")
    top = root / "train" if _is_split(root) else root
    names = tuple(classes) or tuple(
        sorted(
            path.name
            for path in top.iterdir()
            if path.is_dir() and path.name[0] != "." and path.name != "__MACOSX"
        )
    )
    if not names:
        raise UserError(f"{top} holds no class folders")
    for name in names:
        require_text(name)
    return names


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
        if file.suffix.lower() in _PICTURE_SUFFIXES:
            pictures.append(file)
        elif file.is_file():
            others.append(file)
    return pictures, others


def _read_real(
    files: list[pathlib.Path], image_size: int, channels: int, part: pathlib.Path
) -> tuple[np.ndarray, list[int], tuple[tuple[str, str], ...]]:
    read = functools.partial(
        images.read_picture, image_size=image_size, channels=channels, crop=True
    )
    pixels, kept, left_out = [], [], []
    for index, picture in enumerate(images.read_pictures(files, read, part.name)):
        if picture.pixels is None:
            left_out.append((str(files[index]), picture.error))
        else:
            pixels.append(picture.pixels)
            kept.append(index)
    if not pixels:
        file, reason = next(iter(left_out), ("", "there is none"))
        raise UserError(
            f"{part}: no picture that can be read; the first: {file} {reason}"
        )
    if len({p.shape[:2] for p in pixels}) > 1:
        raise UserError(
            f"{part}: pictures of several sizes; set config.data.image_size"
        )
    return images.stack(pixels), kept, tuple(left_out)
