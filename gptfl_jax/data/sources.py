"""Data sets by name, as arrays.

A source is a public function of this module, of `cifar` or, for sounds, of
`audio_sources` that returns a `Source`; a config names it in `data.source` and its
keywords in `data.options`. What does not come with a package is read from
`data.folder`; nothing is downloaded unless an option asks for it.
"""

import inspect
import os
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int32, Shaped

from gptfl_jax import artifacts, user_files
from gptfl_jax.data import audio, audio_sources, cifar, images
from gptfl_jax.data.datasets import Dataset, Sounds, Source
from gptfl_jax.errors import UserError
from gptfl_jax.labels import require_text, same_name

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}


class LoadReport(NamedTuple):
    """What happened to the files of a folder of synthetic examples."""

    loaded: int
    left_out: tuple[tuple[str, str], ...] = ()
    """File name and reason of each file that could not be used."""
    plural: str = "synthetic pictures"
    """Of what the files hold."""

    def __str__(self) -> str:
        text = f"{self.loaded:,} {self.plural} loaded"
        if not self.left_out:
            return text
        text += f"; {len(self.left_out):,} left out:"
        shown = [
            f"\n  {user_files.printable(file)}: {reason}"
            for file, reason in self.left_out[:10]
        ]
        if len(self.left_out) > len(shown):
            shown.append(f"\n  ... and {len(self.left_out) - len(shown):,} more")
        return text + "".join(shown)


def load(
    name: str, folder: str = "", *, image_size: int = 0, channels: int = 0, **options
) -> Source:
    """Loads the source called `name`, converted to `image_size` and `channels`.

    Args:
      folder: where the data lie; sources that come with a package need none.
      image_size, channels: 0 keeps the source's own.
      options: keywords of the source.

    Raises:
      UserError: no such source, an option it does not take, missing or broken files.
    """
    known = available()
    if name not in known:
        raise UserError(
            f"config.data.source = {name!r}: takes one of {', '.join(known)}"
        )
    function = known[name]
    takes = inspect.signature(function).parameters
    unknown = sorted(set(options) - (set(takes) - {"folder", "image_size", "channels"}))
    if unknown:
        known = sorted(set(takes) - {"folder", "image_size", "channels"})
        raise UserError(
            f"config.data.options: {name} does not take {', '.join(unknown)}; "
            f"it takes {', '.join(known) or 'no options'}"
        )
    given = {"folder": folder, "image_size": image_size, "channels": channels}
    if "folder" in takes and not folder:
        raise UserError(
            f"config.data.folder is empty: {name} is read from a folder, give its path"
        )
    source = function(**{k: v for k, v in given.items() if k in takes}, **options)
    if not isinstance(source.train.inputs, np.ndarray):
        if image_size or channels:
            raise UserError(
                f"config.data.image_size and config.data.channels: {name} holds no "
                "pictures; leave them 0"
            )
        return source

    def converted(dataset: Dataset) -> Dataset:
        inputs = images.convert(dataset.inputs, image_size, channels)
        return dataset._replace(inputs=inputs)

    source = source._replace(train=converted(source.train), test=converted(source.test))
    channels = source.train.inputs.shape[-1]
    return source._replace(
        mean=tuple(map(float, images.normalisation_for(source.mean, channels))),
        std=tuple(map(float, images.normalisation_for(source.std, channels))),
    )


def available() -> dict[str, Callable[..., Source]]:
    """The sources there are, by name."""
    functions = globals() | vars(cifar) | vars(audio_sources)
    return {
        name: value
        for name, value in sorted(functions.items())
        if inspect.isfunction(value)
        and not name.startswith("_")
        and name != "load"
        and inspect.signature(value).return_annotation is Source
    }


# The digits of scikit-learn (the test part of UCI's optdigits) come from one form of
# 130 digits that was copied 14 times, run after run; a few digits are missing.
DIGITS_BLOCKS = (
    *(0, 130, 256, 386, 516, 646, 776),
    *(906, 1029, 1157, 1287, 1415, 1545, 1667),
)
"""First example of each writing run; found by the repeating sequence of labels."""


def sklearn_digits(*, test_blocks: int = 3, blocks: int = len(DIGITS_BLOCKS)) -> Source:
    """1,797 real handwritten digits, 8x8 grey; comes with scikit-learn.

    The natural clients are the 14 runs in which they were written (`DIGITS_BLOCKS`).
    The test set is the last `test_blocks` runs, hence of hands not seen in training.
    Pixels count ink in 4x4 blocks, 0..16, here scaled to 0..255 (ink is bright).

    Args:
      test_blocks: runs in the test set.
      blocks: the first so many runs make up the data set. Hyperparameters can be chosen
        on the training writers alone with `blocks=11`: the last of these 11 then are
        the test set, and the real test set is not looked at.
    """
    from sklearn.datasets import load_digits  # slow to import

    if not 2 <= blocks <= len(DIGITS_BLOCKS):
        raise UserError(
            f"config.data.options.blocks = {blocks}: takes a whole number from 2 to "
            f"{len(DIGITS_BLOCKS)}"
        )
    if not 0 < test_blocks < blocks:
        raise UserError(
            f"config.data.options.test_blocks = {test_blocks}: takes a whole number "
            f"from 1 to {blocks - 1}"
        )
    digits = load_digits()
    starts = (*DIGITS_BLOCKS, len(digits.target))
    inputs = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    block = np.searchsorted(DIGITS_BLOCKS, np.arange(len(labels)), side="right") - 1
    block = block.astype(np.int32)
    names = tuple(str(digit) for digit in range(10))
    split, end = starts[blocks - test_blocks], starts[blocks]
    train, test = (
        Dataset(inputs[rows], labels[rows], names, block[rows])
        for rows in (slice(split), slice(split, end))
    )
    return Source(train, test, mean=(0.5,), std=(0.5,))


def image_folder(
    folder: str,
    *,
    image_size: int = 0,
    channels: int = 0,
    classes: Sequence[str] = (),
    test_fraction: int | float = 0.2,
    split_seed: int = 0,
) -> Source:
    """Pictures in a folder a class: `train/<class>/*` and `test/<class>/*`.

    Without these two, the folder itself holds the class folders, and `test_fraction`
    of each class (at least one picture) is drawn as test set by `split_seed`. Pictures
    are cropped to the square in their middle and resized; any mode is converted.
    Unreadable files and those that are no pictures are reported and left out; hidden
    folders and `__MACOSX` are no classes.

    Args:
      image_size: needed unless all pictures have the same square size.
      channels: 1 or 3; 0 is RGB unless all pictures are grey.
      classes: the class folders to use, in the order of their labels; empty takes all,
        sorted by name.
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


def class_names(name: str, folder: str = "", **options) -> tuple[str, ...]:
    """The class names of a source, of picture folders without reading a picture.

    Raises:
      UserError: as `load`.
    """
    if name == "image_folder" and folder:
        return _class_folders(pathlib.Path(folder), options.get("classes", ()))
    return load(name, folder, **options).train.class_names


def hold_out(
    labels: Int32[np.ndarray, " examples"], fraction: int | float, seed: int
) -> Shaped[np.ndarray, " examples"]:
    """Draws `fraction` of each class at random (at least one where a class has two).

    Returns:
      bool [examples], true where held out.
    """
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        count = max(1, round(fraction * len(rows))) if len(rows) > 1 else 0
        held_out[rows[:count]] = True
    return held_out


def select(dataset: Dataset, rows: Shaped[np.ndarray, " rows"]) -> Dataset:
    """The examples at `rows` (numbers or a mask)."""
    clients = None if dataset.clients is None else dataset.clients[rows]
    inputs = jax.tree.map(lambda leaf: leaf[rows], dataset.inputs)
    return dataset._replace(inputs=inputs, labels=dataset.labels[rows], clients=clients)


def concatenate(first: Dataset, second: Dataset) -> Dataset:
    """Both data sets' examples, natural clients dropped.

    Raises:
      ValueError: their classes or example shapes differ.
    """
    if first.class_names != second.class_names:
        raise ValueError(f"classes differ: {first.class_names}, {second.class_names}")
    inputs = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), first.inputs, second.inputs
    )
    labels = np.concatenate([first.labels, second.labels])
    return Dataset(inputs, labels, first.class_names)


# <class>_train_<device>_<j>.png, <class>_add_..., and <class>_train_<domain>_add_...
_ORIGINAL_NAME = re.compile(
    r"(?P<label>.+?)_(?:train|add|train_.+_add)_\d+_\d+\.png", re.DOTALL
)


def load_synthetic(
    folder: str | os.PathLike, source: Source
) -> tuple[Dataset, LoadReport]:
    """Reads the examples stage 1 made, in the form of the real ones of `source`.

    Args:
      folder: `<workdir>/synthetic`, see `synthetic_pictures` and `synthetic_sounds`.

    Returns:
      examples of the same classes and shape, and a report of the files left out.

    Raises:
      UserError: as these; or the real pictures are not square.
    """
    names = source.train.class_names
    if source.sounds is not None:
        frames = source.train.inputs[0].shape[1]
        return synthetic_sounds(folder, names, source.sounds, frames)
    height, width, channels = source.train.inputs.shape[1:]
    if height != width:
        raise UserError(
            f"config.data.source: its pictures are {width}x{height}, and synthetic "
            "ones are square; set config.data.image_size"
        )
    return synthetic_pictures(folder, names, height, channels)


def synthetic_sounds(
    folder: str | os.PathLike,
    class_names: Sequence[str],
    sounds: Sounds,
    frames: int,
) -> tuple[Dataset, LoadReport]:
    """Reads the clips stage 1 made, as features.

    Args:
      folder: `<workdir>/synthetic` with its `manifest.jsonl`.
      class_names: in the order of their labels.
      sounds: how they become features.
      frames: of the result. Longer clips are cut to the first so many, before their
        features are standardised; shorter ones are padded with zeros.

    Returns:
      (features [examples, frames, bands], lengths [examples]) in the order of the
      manifest, and a report of the files left out: unreadable or truncated, gone,
      changed since they were made, or of a class that is not in `class_names`.

    Raises:
      UserError: there is no such folder, a manifest line leaves the folder, or no clip
        could be used.
    """
    folder = pathlib.Path(folder)
    command = "python -m generate.speech --config=... --workdir=..."
    artifacts.require(folder / "manifest.jsonl", command)
    files, labels, digests, left_out = _list_synthetic(folder, class_names)
    settings = sounds.settings
    # With so many samples there are `frames` frames.
    longest_s = (frames * settings.hop - 1) / settings.sample_rate_hz
    limit_s = min(settings.max_duration_s or longest_s, longest_s)
    settings = settings._replace(max_duration_s=limit_s)
    broken: dict[int, str] = {}
    features, lengths = audio.extract(
        [audio.Clip(folder / file, sha256=digests.get(file)) for file in files],
        settings,
        sounds.cache,
        "synthetic clips",
        broken,
    )
    left_out += [(files[index], reason) for index, reason in sorted(broken.items())]
    _require_any(folder, len(lengths), left_out, "clips", command)
    padding = frames - features.shape[1]
    features = np.pad(features, ((0, 0), (0, padding), (0, 0)))
    labels = np.delete(np.asarray(labels, np.int32), list(broken))
    dataset = Dataset((features, lengths), labels, tuple(class_names))
    return dataset, LoadReport(len(labels), tuple(left_out), "synthetic clips")


def synthetic_pictures(
    folder: str | os.PathLike,
    class_names: Sequence[str],
    image_size: int = 0,
    channels: int = 0,
) -> tuple[Dataset, LoadReport]:
    """Reads the pictures stage 1 made, converted to the data's size and channels.

    Args:
      folder: `<workdir>/synthetic` with its `manifest.jsonl`; or a folder made by the
        original's scripts, flat files `<class>_train_<device>_<j>.png` or
        `<class>_train_<domain>_add_<device>_<j>.png` (a file belongs to the class that
        is its whole name before `_train_`, but for case, article and `_`; the original
        looks for the class name anywhere in it and mixes up "car" and "scar").
      class_names: in the order of their labels.
      image_size, channels: of the result; 0 keeps those of the pictures.

    Returns:
      the pictures in the order of the manifest (or of the file names), and a report of
      the files left out: unreadable or truncated, gone, changed since they were made,
      not RGB or grey, of another size than most, or of a class that is not in
      `class_names`.

    Raises:
      UserError: there is no such folder, a manifest line leaves the folder, or no
        picture could be used.
    """
    folder = pathlib.Path(folder)
    files, labels, digests, left_out = _list_synthetic(folder, class_names)
    digests = {folder / file: digest for file, digest in digests.items()}
    read = _Reader(image_size, channels, modes=("RGB", "L"), digests=digests)
    paths = [folder / file for file in files]
    pictures = list(images.read_pictures(paths, read, "synthetic pictures"))
    usual = _most_common([p.size for p in pictures if p.pixels is not None])
    kept = []
    for index, picture in enumerate(pictures):
        if picture.pixels is None:
            left_out.append((files[index], picture.error))
        elif picture.size != usual:
            ours, others = ("{}x{}".format(*s) for s in (picture.size, usual))
            left_out.append((files[index], f"size {ours}, most are {others}"))
        else:
            kept.append(index)
    command = "python -m generate.images --config=... --workdir=..."
    _require_any(folder, len(kept), left_out, "pictures", command)
    pixels = _stack([pictures[index].pixels for index in kept])
    dataset = Dataset(pixels, np.asarray(labels, np.int32)[kept], tuple(class_names))
    return dataset, LoadReport(len(kept), tuple(left_out))


def _require_any(
    folder: pathlib.Path,
    count: int,
    left_out: Sequence[tuple[str, str]],
    plural: str,
    command: str,
) -> None:
    if not count:
        raise UserError(
            f"{folder}: none of {len(left_out):,} {plural} could be used; "
            f"the first: {': '.join(left_out[0]) if left_out else 'there is none'}. "
            f"Make them with `{command}`"
        )


def _list_synthetic(
    folder: pathlib.Path, class_names: Sequence[str]
) -> tuple[list[str], list[int], dict[str, str], list[tuple[str, str]]]:
    """File names, labels, digests by name, and what is left out.

    By the manifest, or by the original's file names.
    """
    digests = {}
    if (folder / "manifest.jsonl").exists():
        made = artifacts.read_manifest(folder)
        entries = [(sample.file, sample.label) for sample in made]
        digests = {sample.file: sample.sha256 for sample in made if sample.sha256}
    else:
        artifacts.require(
            folder, "python -m generate.images --config=... --workdir=..."
        )
        entries = []
        for path in sorted(folder.iterdir()):
            match = _ORIGINAL_NAME.fullmatch(path.name)
            if match:
                written = match["label"]
                same = [n for n in class_names if same_name(n, written)]
                entries.append((path.name, same[0] if same else written))
    number = {name: label for label, name in enumerate(class_names)}
    files, labels, left_out = [], [], []
    for file, label in entries:
        if label in number:
            files.append(file)
            labels.append(number[label])
        else:
            left_out.append((file, f"label {label!r} is not a class"))
    return files, labels, digests, left_out


class _Reader(NamedTuple):
    image_size: int
    channels: int
    modes: tuple[str, ...] | None = None
    crop: bool = False
    digests: Mapping[pathlib.Path, str] = types.MappingProxyType({})

    def __call__(self, path: pathlib.Path) -> images.Picture:
        if artifacts.is_changed(path, self.digests.get(path)):
            return images.Picture(None, (0, 0), "", artifacts.CHANGED)
        return images.read_picture(
            path, self.image_size, self.channels, self.modes, self.crop
        )


def _read_real(
    files: list[pathlib.Path], image_size: int, channels: int, part: pathlib.Path
) -> tuple[np.ndarray, list[int], tuple[tuple[str, str], ...]]:
    read = _Reader(image_size, channels, crop=True)
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
    return _stack(pixels), kept, tuple(left_out)


def _stack(pixels: list[np.ndarray]) -> np.ndarray:
    """One array; grey pictures among RGB ones become RGB."""
    channels = max(p.shape[-1] for p in pixels)
    stacked = np.empty((len(pixels), *pixels[0].shape[:2], channels), np.uint8)
    for index, picture in enumerate(pixels):
        stacked[index] = picture  # one channel is broadcast to all
    return stacked


def _most_common(values: list) -> object:
    return max(sorted(set(values)), key=values.count, default=None)
