"""Pictures that a table lists, with their classes and clients."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptfl_jax import user_files
from gptfl_jax.data import images, tables
from gptfl_jax.data.datasets import (
    Dataset,
    LoadReport,
    Source,
    contents,
    hold_out,
    select,
)
from gptfl_jax.data.sources.image_folder import read_real
from gptfl_jax.errors import UserError
from gptfl_jax.labels import KnownLabels, label_set, same_name
from gptfl_jax.progress import say
from gptfl_jax.rules import Name, Seed

_SPLITS = {
    **{"train": "train", "training": "train", "0": "train"},
    **{"test": "test", "testing": "test", "2": "test"},
}


def picture_table(
    folder: str,
    *,
    image_size: int = 0,
    channels: int = 0,
    table: Name = "metadata.csv",
    file_column: Name = "file_name",
    label_column: Name = "label",
    client_column: str = "",
    split_column: str = "",
    classes: Sequence[str] = (),
    labels: KnownLabels = "",
    test_fraction: int | float = 0.2,
    test_clients: bool = False,
    split_seed: Seed = 0,
) -> Source:
    """Pictures with a row each in a table that names file, class and client.

    As CelebA by celebrity, or FEMNIST in Parquet files. Tables are .csv, .jsonl, or
    .parquet (`pip install "gptfl-jax[parquet]"`). Without `split_column` the test set
    is drawn: `test_fraction` of each client's pictures, of each class's where there are
    no clients; copies of a picture stay on one side. Pictures are cropped to the square
    in their middle and resized. Those that cannot be read are reported and left out.

    Args:
        folder: holds the table.
        image_size: needed unless all pictures have the same square size.
        channels: 1 or 3; 0 is RGB unless all pictures are grey.
        table: its path seen from `folder`; of several, a pattern ("data/*.parquet").
        file_column: has the picture's path, seen from the table's folder and not
            outside it; in Parquet files also the picture itself.
        label_column: has the class.
        client_column: has the client, by whom the partition `natural` deals; empty:
            there is none.
        split_column: says train or test (CelebA: 0 or 2); other rows are left out.
        classes: the classes to use, in the order of their labels; empty takes all,
            sorted by name or, where all are whole numbers, by number.
        labels: the known label set that the classes are of, by name (case, `_`, `-` and
            spaces do not count) or by number from 0; its names, order and prompts
            apply.
        test_fraction: share that is drawn as test set.
        test_clients: draws that share of the clients, with all that is theirs.
        split_seed: of the draw.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"config.data.folder: no such folder {root}")
    if test_clients and not client_column:
        raise UserError(
            "config.data.options.test_clients = True: takes a table with clients; name "
            "their column in config.data.options.client_column"
        )
    if not split_column and not 0 < test_fraction < 1:
        raise UserError(
            f"config.data.options.test_fraction = {test_fraction}: takes a number "
            "between 0 and 1"
        )
    rows = _rows(root, table, file_column, label_column, client_column, split_column)
    names, number = _classes([row["label"] for row in rows], classes, labels)
    rows = [row for row in rows if row["label"] in number]
    parts = [row for row in rows if row.get("split", "train") == "train"]
    tested = [row for row in rows if row.get("split") == "test"]
    if split_column and not (parts and tested):
        raise UserError(
            f"config.data.options.split_column = {split_column!r}: its cells name "
            "no training or no test set; they take train and test, or 0 and 2"
        )
    files = [row["file"] for row in parts + tested]
    pixels, kept, left_out = read_real(files, image_size, channels, root)
    if left_out:
        say(str(LoadReport("real pictures", len(pixels), left_out)))
    numbers = np.asarray([number[row["label"]] for row in parts + tested], np.int32)
    clients = None
    if client_column:
        clients = np.asarray([row["client"] for row in parts + tested])[kept]
    data = Dataset(pixels, numbers[kept], names, clients)
    held_out = np.asarray(kept) >= len(parts)
    if not split_column:
        held_out = _drawn(data, test_fraction, test_clients, split_seed)
    if held_out.all() or not held_out.any():
        raise UserError(
            f"{root}: no picture is left to train on or to test on; add pictures, or "
            "change config.data.options.test_fraction"
        )
    train, test = select(data, ~held_out), select(data, held_out)
    if missing := sorted(set(range(len(names))) - set(train.labels.tolist())):
        raise UserError(
            f"{root}: no picture of the class {names[missing[0]]!r} to train on; name "
            "the classes there are in config.data.options.classes"
        )
    return Source(train, test)


def known_labels(*, labels: str = "", **options) -> str:
    """The known label set that the class names are of; empty: none is named."""
    return labels


def class_names(
    folder: str,
    *,
    table: str = "metadata.csv",
    label_column: str = "label",
    classes: Sequence[str] = (),
    labels: str = "",
    **options,
) -> tuple[str, ...]:
    """Those in the table, without reading a picture."""
    columns = {label_column: _word}
    found = [
        row[label_column]
        for file in _tables(pathlib.Path(folder), table)
        for row in tables.read_any(file, columns)
    ]
    return _classes(found, classes, labels)[0]


def _tables(root: pathlib.Path, table: str) -> list[pathlib.Path]:
    if pathlib.PurePath(table).is_absolute():
        raise UserError(
            f"config.data.options.table = {table!r}: takes a path seen from "
            "config.data.folder"
        )
    found = sorted(path for path in root.glob(table) if path.is_file())
    if not found:
        raise UserError(
            f"config.data.options.table = {table!r}: {root} has no such file"
        )
    return found


def _rows(
    root: pathlib.Path, table: str, file: str, label: str, client: str, split: str
) -> list[dict[str, Any]]:
    """The rows of all tables, with the keys file, label, client and split."""
    rows = []
    for path in _tables(root, table):
        columns = {file: _picture, label: _word}
        columns |= {column: _word for column in (client, split) if column}
        for index, row in enumerate(tables.read_any(path, columns)):
            picture = row[file]
            if isinstance(picture, bytes):
                picture = images.Embedded(f"{path} row {index}", picture)
            else:
                picture = path.parent / picture
            made = {"file": picture, "label": row[label]}
            if client:
                made["client"] = row[client]
            if split:
                made["split"] = _SPLITS.get(row[split].lower(), "")
            rows.append(made)
    return rows


def _word(cell: Any) -> str:
    """A name or whole number, as text."""
    if isinstance(cell, bool) or not isinstance(cell, str | int):
        raise ValueError("is no name and no whole number")
    return user_files.printable(tables.text(str(cell)))


def _picture(cell: Any) -> str | bytes:
    """A path below the table's folder, or a picture's file."""
    if isinstance(cell, Mapping):  # as the data sets of Hugging Face have it
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str):
        raise ValueError("is no path and no picture")
    path = pathlib.PurePosixPath(cell)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError("is no path below the table's folder")
    for part in path.parts:
        tables.file_name(part)
    return cell


def _classes(
    found: Sequence[str], classes: Sequence[str], labels: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The class names, and the label of each cell that is one of them."""
    cells = set(found)
    numbers = {cell: int(cell) for cell in cells if cell.isascii() and cell.isdigit()}
    by_number = len(numbers) == len(cells)
    if not labels:
        names = tuple(classes) or tuple(
            sorted(cells, key=numbers.get if by_number else None)
        )
        if missing := [name for name in names if name not in cells]:
            raise UserError(
                f"config.data.options.classes: no picture is of class {missing[0]!r}"
            )
        return names, {name: label for label, name in enumerate(names)}
    known = label_set(labels).classes
    names = tuple(classes) or known
    if missing := [name for name in names if name not in known]:
        raise UserError(
            f"config.data.options.classes: {labels} has no class {missing[0]!r}"
        )
    number = {}
    for cell in sorted(cells):
        if by_number and not any(same_name(cell, name) for name in known):
            called = [known[numbers[cell]]] if numbers[cell] < len(known) else []
        else:
            called = [name for name in known if same_name(name, cell)]
        if not called:
            raise UserError(
                f"config.data.options.labels = {labels!r}: the table's {cell!r} is "
                f"none of its {len(known)} classes"
            )
        if called[0] in names:
            number[cell] = names.index(called[0])
    return names, number


def _drawn(
    data: Dataset, fraction: int | float, clients: bool, seed: int
) -> np.ndarray:
    """Where the pictures of the test set are."""
    if data.clients is None:
        return hold_out(data.labels, fraction, seed, contents(data.inputs))
    names, owners = np.unique(data.clients, return_inverse=True)
    if not clients:
        owners = owners.astype(np.int32)
        return hold_out(owners, fraction, seed, contents(data.inputs))
    drawn = hold_out(np.zeros(len(names), np.int32), fraction, seed)
    return drawn[owners]
