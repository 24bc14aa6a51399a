"""The tables that come with data sets: every cell is checked.

CSV files; with `read_any` lines of JSON and Parquet files as well.
"""

import csv
import io
import json
import math
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptfl_jax import user_files

MOST_BYTES = 2**25
"""Of a table or list: the longest, MELD's, has 1 MB."""


def read(
    path: pathlib.Path,
    columns: Mapping[str, Callable[[str], Any]],
    check: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """The rows of a CSV file.

    Args:
        columns: those wanted, each with what makes its value of the text, or raises
            ValueError.
        check: is shown each row, and raises ValueError where it does not fit those
            before.

    Raises:
        Unreadable: the file is missing or damaged, or lacks a column or a value.
    """
    text = user_files.read_text(path, MOST_BYTES)
    # Lines end where csv says: cells may hold what other readers of lines end them at.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        missing = sorted(set(columns) - set(reader.fieldnames or ()))
        if missing:
            raise _no_column(*missing)
        for row in reader:
            rows.append({name: _cell(row, name, columns[name]) for name in columns})
            if check is not None:
                check(rows[-1])
    except (csv.Error, ValueError) as error:
        where = f"line {reader.line_num}: " if reader.line_num > 1 else ""
        raise user_files.Unreadable(path, where + user_files.brief(error)) from error
    if not rows:
        raise user_files.Unreadable(path, "has no rows")
    return rows


MANY_BYTES = 2**33
"""Of a Parquet file, which may hold pictures."""
_MANY_ROWS = 2**24


def read_any(
    path: pathlib.Path, columns: Mapping[str, Callable[[Any], Any]]
) -> list[dict[str, Any]]:
    """The rows of a file that ends in .csv, .jsonl or .parquet.

    Args:
        columns: those wanted, each with what makes its value of the cell, or raises
            ValueError. A cell of a CSV file is text; of others it is of any type.

    Raises:
        Unreadable: as `read`; the ending is another; or pyarrow is not installed.
    """
    kinds = {".csv": read, ".jsonl": _read_lines, ".parquet": _read_parquet}
    if path.suffix not in kinds:
        raise user_files.Unreadable(
            path, "is no table", f"give a file that ends in {', '.join(kinds)}"
        )
    return kinds[path.suffix](path, columns)


def _read_lines(path: pathlib.Path, columns: Mapping[str, Callable]) -> list[dict]:
    rows = []
    for number, line in enumerate(
        user_files.read_text(path, MOST_BYTES).splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("is no object")
            if missing := sorted(set(columns) - set(row)):
                raise _no_column(*missing)
            rows.append({name: _cell(row, name, columns[name]) for name in columns})
        except (ValueError, RecursionError) as error:
            where = f"line {number}: {user_files.brief(error)}"
            raise user_files.Unreadable(path, where) from error
    if not rows:
        raise user_files.Unreadable(path, "has no rows")
    return rows


def _read_parquet(path: pathlib.Path, columns: Mapping[str, Callable]) -> list[dict]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise user_files.Unreadable(
            path,
            f"needs pyarrow ({user_files.brief(error)})",
            "pip install 'gptfl-jax[parquet]'",
        ) from error
    rows = []
    with user_files.open_plain(path, MANY_BYTES) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if missing := sorted(set(columns) - set(table.schema_arrow.names)):
                raise _no_column(*missing)
            if table.metadata.num_rows > _MANY_ROWS:
                raise ValueError(f"has more than {_MANY_ROWS:,} rows")
            for batch in table.iter_batches(512, columns=list(columns)):
                for row in batch.to_pylist():
                    rows.append(
                        {name: _cell(row, name, columns[name]) for name in columns}
                    )
        except Exception as error:  # pyarrow reports broken files as almost anything
            where = f"row {len(rows)}: " if rows else ""
            raise user_files.Unreadable(
                path, where + user_files.brief(error)
            ) from error
    if not rows:
        raise user_files.Unreadable(path, "has no rows")
    return rows


def _no_column(*names: str) -> ValueError:
    return ValueError(f"has no column {', '.join(names)}")


def _cell(row: Mapping[str, Any], column: str, kind: Callable[[Any], Any]):
    cell = row[column]
    try:
        return kind("" if cell is None else cell)
    except ValueError as error:
        found = reprlib.repr(cell)
        raise ValueError(f"{column} = {found}: {error}") from error


def text(text: str) -> str:
    """Any text but none."""
    if not text:
        raise ValueError("is missing")
    return text


def number(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("is no number")
    return value


def file_name(text: str) -> str:
    """A name in its folder, which it cannot leave."""
    plain = user_files.printable(text) == text and len(os.fsencode(text)) < 256
    if not plain or text in ("", "..") or pathlib.PurePath(text).name != text:
        raise ValueError("is no file name")
    return text


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """A whole number of `least` to `most`."""

    def read(text):
        if not re.fullmatch("[0-9]{1,4}", text) or not least <= int(text) <= most:
            raise ValueError(f"is no whole number of {least} to {most}")
        return int(text)

    return read


def class_of(names: Sequence[str]) -> Callable[[str], str]:
    """One of these class names."""

    def read(text):
        if text not in names:
            raise ValueError("is no class of the data set")
        return text

    return read
