"""Any labelled set of pictures of TensorFlow Datasets, read without TensorFlow."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gptfl_jax import rules, user_files
from gptfl_jax.data import images, picture_cache
from gptfl_jax.data.datasets import Dataset, Source, contents, hold_out, select
from gptfl_jax.data.stored_rows import Rows
from gptfl_jax.errors import UserError
from gptfl_jax.labels import KnownLabels, label_set, same_name

# Sets whose classes are those of a known label set, in any order.
_LABELS = {
    "caltech101": "caltech101",
    "cifar10": "cifar10",
    "cifar100": "cifar100",
    "emnist": "emnist",
    **{"emnist/digits": "mnist", "emnist/mnist": "mnist"},
    **dict.fromkeys(("emnist/balanced", "emnist/bymerge", "emnist/letters"), ""),
    "eurosat": "eurosat",
    "fashion_mnist": "fashion_mnist",
    "food101": "food101",
    "mnist": "mnist",
    "oxford_flowers102": "flowers102",
    "svhn_cropped": "svhn",
}

# Sets whose pictures have their rows for columns, as they were released.
_TRANSPOSED = {"emnist"}


def tfds(
    folder: str,
    *,
    name: rules.Name,
    image_size: int = 0,
    channels: int = 0,
    train_split: rules.Name = "train",
    test_split: str = "",
    test_fraction: int | float = 0.2,
    split_seed: rules.Seed = 0,
    labels: KnownLabels = "",
    image_key: rules.Name = "image",
    label_key: rules.Name = "label",
    client_key: str = "",
) -> Source:
    """Pictures of TensorFlow Datasets: CIFAR, Food-101, EuroSAT, EMNIST, SVHN, ...

    Needs the package tensorflow-datasets (`pip install "gptfl-jax[tfds]"`) and the set
    in `folder`, prepared in a format of random access: `tfds build` does so once, on
    any machine with TensorFlow. Pictures are cropped to the square in their middle and
    resized; those of EMNIST, which lie on their side, are set upright.

    Args:
        folder: what TensorFlow Datasets calls data_dir.
        name: of the set, as cifar10, emnist/balanced or food101:2.0.0.
        image_size: needed unless all pictures have the same square size.
        channels: 1 or 3; 0 keeps the set's own.
        train_split: its split, or a part of it as train[:80%].
        test_split: the same of the test set; empty takes "test", else "validation",
            else `test_fraction` of each class of the training split, copies of a
            picture all on one side.
        test_fraction: share of each class in a test set that is drawn.
        split_seed: of that draw.
        labels: the known label set whose class names, order and prompts apply; empty
            takes that of the set where there is one. Classes that it lacks, as the
            background of Caltech 101, are left out.
        image_key: the feature that holds the picture.
        label_key: the feature that holds the class.
        client_key: the feature that names an example's client; empty: it has none.
    """
    builder = _builder(folder, name)
    names, number = _classes(builder, name, label_key, labels)
    for key in (image_key, *([client_key] if client_key else [])):
        _feature(builder, name, key)

    def read(split: str) -> Dataset:
        rows = _open(builder, folder, name, split)
        pixels, numbers, clients = _read(
            rows,
            _contents(_rows_of(builder, split), len(rows)),
            f"{name} {split}",
            image_size,
            channels,
            (image_key, label_key),
            client_key,
            _set_of(name) in _TRANSPOSED,
        )
        if numbers.min() < 0 or numbers.max() >= len(number):
            raise UserError(
                f"{name}: the split {split} has examples without a class; choose "
                "others by config.data.options.train_split and test_split"
            )
        data = Dataset(pixels, number[numbers], names, clients)
        known = data.labels >= 0
        return data if known.all() else select(data, known)

    splits = builder.info.splits or ()
    found = [split for split in ("test", "validation") if split in splits]
    test_split = test_split or (found[0] if found else "" if splits else "test")
    if test_split:
        _require_apart(builder, name, train_split, test_split)
        train, test = read(train_split), read(test_split)
        if train.inputs.shape[1:] != test.inputs.shape[1:]:
            raise _of_several_sizes(name)
        return Source(train, test)
    if not 0 < test_fraction < 1:
        raise UserError(
            f"config.data.options.test_fraction = {test_fraction}: takes a number "
            "between 0 and 1"
        )
    data = read(train_split)
    held_out = hold_out(data.labels, test_fraction, split_seed, contents(data.inputs))
    return Source(select(data, ~held_out), select(data, held_out))


def class_names(
    folder: str,
    *,
    name: str,
    labels: str = "",
    label_key: str = "label",
    **options,
) -> tuple[str, ...]:
    """Those of the set, without reading a picture."""
    return _classes(_builder(folder, name), name, label_key, labels)[0]


def known_labels(*, name: str, labels: str = "", **options) -> str:
    """The known label set that the class names are of; empty: there is none."""
    whole = name.partition(":")[0]
    return labels or _LABELS.get(whole, _LABELS.get(_set_of(name), ""))


def _set_of(name: str) -> str:
    """A name without the version and the variant of the set."""
    return name.partition("/")[0].partition(":")[0]


def _builder(folder: str, name: str) -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "config.data.source = 'tfds' needs TensorFlow Datasets "
            f"({user_files.brief(error)}): pip install 'gptfl-jax[tfds]'"
        ) from error
    try:
        return tensorflow_datasets.builder(name, data_dir=folder)
    except Exception as error:  # it reports broken files as almost anything
        raise UserError(
            f"config.data.options.name = {name!r}: {user_files.brief(error)}: takes a "
            f"set of tensorflow.org/datasets, or one in {user_files.printable(folder)}"
        ) from error


def _feature(builder: Any, name: str, key: str) -> Any:
    features = builder.info.features
    if key not in features:
        raise UserError(
            f"config.data.options: {name} has no feature {key!r}; it has "
            + ", ".join(features)
        )
    return features[key]


def _classes(
    builder: Any, name: str, label_key: str, labels: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names, and the number that each of the set's own numbers becomes.

    It is -1 where the known label set has no such class.
    """
    own = getattr(_feature(builder, name, label_key), "names", None)
    if own is None:
        raise UserError(
            f"config.data.options.label_key = {label_key!r}: takes a feature with "
            f"class names, which that of {name} has not"
        )
    own = tuple(own)
    as_it_is = np.arange(len(own), dtype=np.int32)
    known = known_labels(name=name, labels=labels)
    if not known:
        return own, as_it_is
    classes = label_set(known).classes
    # Of a set that is not there the names are not known either, only their number.
    if own == tuple(map(str, range(len(classes)))):
        return classes, as_it_is
    number = [[n for n, c in enumerate(classes) if same_name(c, each)] for each in own]
    found = sorted(n for each in number for n in each)
    if found == list(range(len(classes))):
        number = [each[0] if each else -1 for each in number]
        return classes, np.asarray(number, np.int32)
    if not labels:
        return own, as_it_is
    raise UserError(
        f"config.data.options.labels = {labels!r}: its {len(classes)} classes are not "
        f"the {len(own)} of {name}"
    )


class _Rows(NamedTuple):
    """Examples that lie in one of a set's files, from `start` to before `stop`."""

    file: str
    start: int
    stop: int


def _rows_of(builder: Any, split: str) -> list[_Rows]:
    """Where the examples of a split lie; empty where the set does not say."""
    try:
        parts = builder.info.splits[split].file_instructions
    except Exception:  # as in `_builder`; `_open` says what is wrong
        return []
    return [
        _Rows(
            str(part.filename),
            part.skip,
            part.examples_in_shard if part.take < 0 else part.skip + part.take,
        )
        for part in parts
    ]


def _require_apart(builder: Any, name: str, train_split: str, test_split: str) -> None:
    """Refuses splits that share examples, as train and train[80%:]."""
    tests = {rows.file: rows for rows in _rows_of(builder, test_split)}
    for rows in _rows_of(builder, train_split):
        other = tests.get(rows.file)
        if other and rows.start < other.stop and other.start < rows.stop:
            raise UserError(
                f"{name}: config.data.options.train_split = {train_split!r} and "
                f"test_split = {test_split!r} share examples: take parts that do not "
                "overlap, as train[:80%] and train[80%:]"
            )


def _open(builder: Any, folder: str, name: str, split: str) -> Sequence[Any]:
    """The examples of a split, each decoded when it is taken."""
    try:
        rows = builder.as_data_source(split=split)
        if not len(rows):
            raise ValueError("there is no example")
        return rows
    except Exception as error:  # as in `_builder`
        splits = ", ".join(builder.info.splits or ())
        has = f"it has the splits {splits}, or is" if splits else "it is"
        raise UserError(
            f"{name}: no split {split!r} can be read from config.data.folder = "
            f"{folder!r} ({user_files.brief(error)}): {has} to be prepared, where "
            f"TensorFlow is installed, by `tfds build {name} "
            f"--file_format=array_record --data_dir={folder}`"
        ) from error


def _contents(
    places: Sequence[_Rows], count: int
) -> Callable[[Sequence[int]], list[str]] | None:
    """numbers -> the content of each example: that of its file, and its place there.

    None: it is not known where they lie.
    """
    ends = np.cumsum([rows.stop - rows.start for rows in places], dtype=np.int64)
    if not places or ends[-1] != count:
        return None

    @functools.cache
    def files() -> list[str]:
        return picture_cache.contents_of([rows.file for rows in places])

    def contents(numbers: Sequence[int]) -> list[str]:
        which = np.searchsorted(ends, numbers, "right")
        return [
            f"{files()[at]} {places[at].stop - ends[at] + number}"
            for at, number in zip(which.tolist(), numbers, strict=True)
        ]

    return contents


def _read(
    rows: Sequence[Any],
    contents: Callable[[Sequence[int]], list[str]] | None,
    description: str,
    image_size: int,
    channels: int,
    keys: tuple[str, str],
    client_key: str,
    transposed: bool,
) -> tuple[Rows, np.ndarray, np.ndarray | None]:
    """Pictures, numbers of their classes, and names of their clients."""

    def read(index: int) -> tuple[np.ndarray, list]:
        example = rows[index]
        pixels = np.asarray(example[keys[0]])
        if (
            pixels.dtype != np.uint8
            or pixels.ndim != 3
            or pixels.shape[2] not in (1, 3)
        ):
            raise UserError(
                f"{description}: example {index} is {pixels.dtype} {pixels.shape}, not "
                "a picture of 8 bits with 1 or 3 channels"
            )
        if transposed:
            pixels = pixels.swapaxes(0, 1)
        pixels = images.middle_square(pixels)
        pixels = images.convert(pixels[None], image_size, channels)[0]
        client = example[client_key] if client_key else ""
        client = client.decode() if isinstance(client, bytes) else str(client)
        return pixels, [int(example[keys[1]]), client]

    options = ["tfds", image_size, channels, *keys, client_key]
    options += ["transposed"] if transposed else []
    decoded = picture_cache.decode(
        range(len(rows)), contents, read, options, description
    )
    if len(set(decoded.sizes)) > 1:
        raise _of_several_sizes(description)
    labels, clients = zip(*decoded.notes, strict=True)
    return (
        decoded.take(range(len(rows))),
        np.asarray(labels, np.int32),
        np.asarray(clients) if client_key else None,
    )


def _of_several_sizes(what: str) -> UserError:
    return UserError(
        f"{what}: pictures of several sizes or channels; set config.data.image_size "
        "and config.data.channels"
    )
