"""FEMNIST, in the files of LEAF and in that of TensorFlow Federated."""

import contextlib
import functools
import hashlib
import io
import json
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from gptfl_jax import artifacts, user_files
from gptfl_jax.cache_folder import cache_folder
from gptfl_jax.data.datasets import Dataset, Source, contents, hold_out, select
from gptfl_jax.errors import UserError
from gptfl_jax.labels import label_set
from gptfl_jax.rules import Count, Seed

_SIDE = 28
_PIXELS = _SIDE * _SIDE
# LEAF writes a file for a hundred writers: some 23,000 pictures of up to 15 kB each.
_MOST_BYTES = 2**29
# Smaller ones are not kept as arrays.
_SMALL_BYTES = 2**22
_DATABASE = "emnist_all.sqlite"
_RELEASED = (
    "train/ and test/ with the .json files of LEAF (https://github.com/TalwalkarLab/"
    "leaf), all_data/ with those it splits, or the unpacked file of TensorFlow "
    "Federated, https://storage.googleapis.com/tff-datasets-public/"
    f"{_DATABASE}.lzma"
)

Writer = tuple[str, np.ndarray, np.ndarray]
"""Name, uint8 [examples, 784], int32 [examples]."""


def femnist(
    folder: str,
    *,
    writers: Count = 0,
    test_fraction: int | float = 0.1,
    split_seed: Seed = 0,
) -> Source:
    """FEMNIST (LEAF, arXiv 1812.01097): 62 digits and letters by 3,550 writers.

    The writers are the natural clients. Pictures are 28x28 grey, dark ink on white.
    The test set is that of the release: `train/` and `test/` of LEAF, or the splits
    all_train and all_test of TensorFlow Federated's 3,400 writers. Of LEAF's unsplit
    files, `test_fraction` of each writer's pictures is drawn; copies of a picture stay
    on one side. The classes are in the order of both releases: digits, capitals, small
    letters.

    LEAF's files, which take long to read, are kept as arrays beside decoded pictures
    (`gptfl_jax.cache_folder`).

    Args:
        folder: holds `emnist_all.sqlite`; or `train/*.json` and `test/*.json`; or
            `all_data/*.json`, or such files themselves. The first that is found is
            read. These may be in a folder `data` in it, as LEAF's scripts leave them.
        writers: the first so many of each part, by name; 0 takes all.
        test_fraction: share of each writer's pictures in a test set that is drawn.
        split_seed: of that draw.
    """
    root, names = pathlib.Path(folder), label_set("femnist").classes
    if not root.is_dir():
        raise UserError(f"config.data.folder: no such folder {root}")
    for place in (root, root / "data"):
        if (place / _DATABASE).exists():
            database = place / _DATABASE
            parts = [
                _together(_in_database(database, split, writers), names, database)
                for split in ("all_train", "all_test")
            ]
            return _source(*parts)
        found = {part: _json_files(place / part) for part in ("train", "test")}
        if all(found.values()):
            return _source(
                *(
                    _together(_in_files(files, writers), names, place / part)
                    for part, files in found.items()
                )
            )
        if files := _json_files(place / "all_data") or _json_files(place):
            if not 0 < test_fraction < 1:
                raise UserError(
                    f"config.data.options.test_fraction = {test_fraction}: takes a "
                    "number between 0 and 1"
                )
            data = _together(_in_files(files, writers), names, place)
            owners = np.unique(data.clients, return_inverse=True)[1].astype(np.int32)
            same = contents(data.inputs)
            held_out = hold_out(owners, test_fraction, split_seed, same)
            if not held_out.any():
                raise UserError(f"{place}: a picture a writer leaves none to test on")
            return _source(select(data, ~held_out), select(data, held_out))
    raise UserError(f"{root}: holds no FEMNIST: takes {_RELEASED}")


def class_names(folder: str, **options) -> tuple[str, ...]:
    """Those of both releases, without reading a picture."""
    return label_set("femnist").classes


def _source(train: Dataset, test: Dataset) -> Source:
    return Source(train, test, mean=(0.5,), std=(0.5,))


def _json_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("*.json"))


def _together(
    writers: Iterable[Writer], names: Sequence[str], where: pathlib.Path
) -> Dataset:
    """The writers' examples in one data set, in the order of their names."""
    parts = [writer for writer in writers if len(writer[2])]
    if not parts:
        raise UserError(f"{where}: holds no picture: get the data set again")
    parts.sort(key=lambda writer: writer[0])
    pixels = np.concatenate([writer[1] for writer in parts])
    labels = np.concatenate([writer[2] for writer in parts])
    counts = [len(writer[2]) for writer in parts]
    clients = np.repeat([writer[0] for writer in parts], counts)
    return Dataset(pixels.reshape(-1, _SIDE, _SIDE, 1), labels, tuple(names), clients)


def _checked(pixels: Any, labels: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels as bytes and labels as numbers.

    Raises:
        ValueError: they are not 784 numbers of 0 to 1 and a class for each example.
    """
    try:
        pixels = np.asarray(pixels, np.float32).reshape(len(pixels), -1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the pixels of {what} are no numbers") from error
    if not len(pixels):
        pixels = pixels.reshape(0, _PIXELS)
    if pixels.shape[1] != _PIXELS:
        raise ValueError(
            f"a picture of {what} has {pixels.shape[1]} pixels, not {_PIXELS}"
        )
    if not (pixels.min(initial=0) >= 0 and pixels.max(initial=0) <= 1):
        raise ValueError(f"{what} has pixels that are no numbers of 0 to 1")
    if len(labels) != len(pixels):
        raise ValueError(f"{what} has {len(labels)} labels of {len(pixels)} pictures")
    if not all(type(n) is int and 0 <= n < 62 for n in labels):
        raise ValueError(f"{what} has labels that are no numbers of 0 to 61")
    return np.rint(pixels * 255).astype(np.uint8), np.asarray(labels, np.int32)


def _in_files(files: Sequence[pathlib.Path], most: int) -> Iterable[Writer]:
    """The first `most` writers in LEAF's files."""
    found: dict[str, Writer] = {}
    bar = tqdm(files, desc=f"FEMNIST {files[0].parent.name}", unit="file", disable=None)
    for file in bar:
        for name, pixels, labels in _in_file(file):
            if name in found:
                raise user_files.Unreadable(
                    file,
                    f"has the writer {name}, as has another file beside it",
                    "keep the files of one run of LEAF's scripts",
                )
            found[name] = name, pixels, labels
        if most:
            found = {name: found[name] for name in sorted(found)[:most]}
    return found.values()


def _in_file(file: pathlib.Path) -> Iterable[Writer]:
    """The writers in one of LEAF's files, which is kept as arrays once it was read.

    To read the numbers of a hundred writers takes seconds, the arrays no time.
    """
    content = user_files.read_bytes(file, _MOST_BYTES)
    if len(content) < _SMALL_BYTES:
        return _parsed(file, content)
    digest = hashlib.sha256(content).hexdigest()
    kept = cache_folder("femnist") / f"{digest}.npz"
    writers = _from_cache(kept)
    if writers is None:
        writers = list(_parsed(file, content))
        with contextlib.suppress(OSError, UserError):  # there may be no room for it
            artifacts.write_bytes(kept, _to_bytes(writers))
    return writers


def _to_bytes(writers: Sequence[Writer]) -> bytes:
    names, pixels, labels = zip(*writers, strict=True)
    archive = io.BytesIO()
    np.savez(
        archive,
        names=np.asarray(names),
        counts=np.asarray([len(each) for each in labels]),
        pixels=np.concatenate(pixels),
        labels=np.concatenate(labels),
    )
    return archive.getvalue()


def _from_cache(path: pathlib.Path) -> list[Writer] | None:
    """What `_to_bytes` gave; None: there is none, or it is damaged."""
    try:
        content = io.BytesIO(user_files.read_bytes(path, _MOST_BYTES))
        with np.load(content, allow_pickle=False) as archive:
            names, counts, pixels, labels = (
                archive[key] for key in ("names", "counts", "pixels", "labels")
            )
        if not len(pixels) == len(labels) == counts.sum():
            return None
        ends = np.cumsum(counts)[:-1]
        parts = np.split(pixels, ends), np.split(labels, ends)
        return list(zip(names.tolist(), *parts, strict=True))
    except Exception:  # of a damaged archive almost anything
        return None


def _parsed(file: pathlib.Path, content: bytes) -> Iterator[Writer]:
    try:
        users = json.loads(content)["user_data"]
        del content
        if not isinstance(users, Mapping):
            raise ValueError("user_data is no object")
        while users:
            name, data = users.popitem()
            what = user_files.printable(f"the writer {name[:40]!r}")
            if not (
                isinstance(data, Mapping)
                and isinstance(data.get("x"), list)
                and isinstance(data.get("y"), list)
            ):
                raise ValueError(f"{what} has no lists x and y")
            yield name, *_checked(data["x"], data["y"], what)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise user_files.Unreadable(
            file, f"no file of LEAF ({user_files.brief(error)})"
        ) from error


def _in_database(path: pathlib.Path, split: str, most: int) -> Iterable[Writer]:
    """The first `most` writers of a split of TensorFlow Federated's database.

    Its table `examples` has a row an example: split_name, client_id, and a
    tf.train.Example of `pixels` and `label`.
    """
    user_files.open_plain(path).close()
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            # A row has 3.2 kB. A database is from anywhere: views in it do not run.
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2**20)
            database.execute("PRAGMA trusted_schema = OFF")
            kind = "SELECT type FROM sqlite_master WHERE name = 'examples'"
            if database.execute(kind).fetchall() != [("table",)]:
                raise ValueError("it has no table examples")
            names = database.execute(
                "SELECT DISTINCT client_id FROM examples WHERE split_name = ? "
                "ORDER BY client_id LIMIT ?",
                (split, most or -1),
            ).fetchall()
            return [
                _of_client(database, split, name)
                for (name,) in tqdm(
                    names, desc=f"FEMNIST {split}", unit="writer", disable=None
                )
            ]
    except (sqlite3.Error, OverflowError, ValueError) as error:
        raise user_files.Unreadable(
            path, f"no database of TensorFlow Federated ({user_files.brief(error)})"
        ) from error


def _of_client(database: sqlite3.Connection, split: str, name: Any) -> Writer:
    if not isinstance(name, str):
        raise ValueError("it has a client without a name")
    what = user_files.printable(f"the writer {name[:40]!r}")
    pixels, labels = [], []
    for (content,) in database.execute(
        "SELECT serialized_example_proto FROM examples "
        "WHERE split_name = ? AND client_id = ? ORDER BY rowid",
        (split, name),
    ):
        row, label = _example(content, what)
        pixels.append(row)
        labels.append(label)
    return name, *_checked(pixels, labels, what)


def _example(content: Any, what: str) -> tuple[np.ndarray, int]:
    """Pixels and label of a tf.train.Example."""
    message = _example_type()()
    try:
        message.ParseFromString(content)
        features = {each.key: each.value for each in message.features.feature}
        pixels = np.frombuffer(features["pixels"].float_list.packed, "<f4")
        (label,) = features["label"].int64_list.value
    except Exception as error:  # protobuf's errors are of several kinds
        raise ValueError(f"{what} has an example without pixels and label") from error
    if len(pixels) != _PIXELS:
        raise ValueError(f"a picture of {what} has {len(pixels)} pixels")
    return pixels, label


@functools.cache
def _example_type() -> type:
    """The message tf.train.Example, of what is needed of it.

    A list of numbers is written packed, which is how bytes are written: so the pixels
    come in one piece.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="femnist")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name: str, *fields: tuple[str, int, int, str, bool]) -> None:
        kind = file.message_type.add(name=name)
        for field, number, form, of, repeated in fields:
            kind.field.add(
                name=field,
                number=number,
                type=form,
                type_name=f".femnist.{of}" if of else None,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
            )

    nested = kinds.TYPE_MESSAGE
    message("Floats", ("packed", 1, kinds.TYPE_BYTES, "", False))
    message("Integers", ("value", 1, kinds.TYPE_INT64, "", True))
    message(
        "Feature",
        ("float_list", 2, nested, "Floats", False),
        ("int64_list", 3, nested, "Integers", False),
    )
    message(
        "Entry",
        ("key", 1, kinds.TYPE_STRING, "", False),
        ("value", 2, nested, "Feature", False),
    )
    message("Features", ("feature", 1, nested, "Entry", True))
    message("Example", ("features", 1, nested, "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("femnist.Example")
    return message_factory.GetMessageClass(found)
