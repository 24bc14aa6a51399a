"""The tables that come with data sets, as CSV files: every cell is checked."""

import csv
import math
import os
import pathlib
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptfl_jax import user_files

MOST_BYTES = 2**25
"""Of a table or list: the longest, CREMA-D's, has 0.7 MB."""


def read(
    path: pathlib.Path, columns: Mapping[str, Callable[[str], Any]]
) -> list[dict[str, Any]]:
    """The rows of a CSV file.

    Args:
        columns: those wanted, each with what makes its value of the text, or raises
            ValueError.

    Raises:
        Unreadable: the file is missing or damaged, or lacks a column or a value.
    """
    text = user_files.read_text(path, MOST_BYTES)
    reader = csv.DictReader(text.splitlines(), strict=True)
    rows = []
    try:
        missing = sorted(set(columns) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(f"has no column {', '.join(missing)}")
        for row in reader:
            rows.append({name: _cell(row, name, columns[name]) for name in columns})
    except (csv.Error, ValueError) as error:
        where = f"line {reader.line_num}: " if reader.line_num > 1 else ""
        raise user_files.Unreadable(path, where + user_files.brief(error)) from error
    if not rows:
        raise user_files.Unreadable(path, "has no rows")
    return rows


def _cell(row: Mapping[str, str | None], column: str, kind: Callable[[str], Any]):
    try:
        return kind(row[column] or "")
    except ValueError as error:
        found = reprlib.repr(row[column])
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
