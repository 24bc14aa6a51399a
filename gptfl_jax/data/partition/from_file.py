"""Clients as a file deals them."""

import hashlib
import pathlib
import re
import reprlib

import numpy as np
from jaxtyping import Int32

from gptfl_jax import rules, user_files

# Ten million rows of ten characters, or numbers of 8 bytes.
_MOST_BYTES = 2**27

_ENTRY = re.compile(r"""["']?([^"'\s:\[\],{}]+)["']?\s*:\s*\[([^][]*)\]""")


def from_file(
    num_examples: int, file: rules.Name
) -> Int32[np.ndarray, " {num_examples}"]:
    """From a file: each example's client as recorded, so that others can have the same.

    The file is one of three. The rows of each client, in JSON or in the text that
    FedML and the original (`hetero-fix`) write, `{0: [17, 4, ...], 1: [...], ...}` on
    any number of lines, rows counted from 0 in the order of the training set; a line an
    example, with its client's name; or a `.npy` file of each example's client number.
    Clients are numbered in sorted order, by number where all are called by numbers.
    Clients without examples do not count.

    Args:
        num_examples: of the training set.
        file: the file's path; it holds rows by client, `{0: [17, 4], 1: [...]}`, or a
            line an example with its client's name, or is a .npy of client numbers.

    Raises:
        Unreadable: the file cannot be read, or does not give each example one client.
    """
    path = pathlib.Path(file)
    if path.suffix == ".npy":
        clients = _read(user_files.read_array, path)
        if clients.ndim != 1 or clients.dtype.kind not in "iu":
            raise _wrong(path, f"holds {clients.dtype}, not a client number a row")
    else:
        text = _read(user_files.read_text, path)
        if text.lstrip().startswith("{"):
            clients = _from_map(path, text, num_examples)
        else:
            lines = [line.strip() for line in text.splitlines()]
            if "" in lines:
                raise _wrong(path, f"line {lines.index('') + 1} names no client")
            clients = _numbers_if_all_are(lines)
    if len(clients) != num_examples:
        raise _wrong(
            path, f"gives {len(clients):,} examples a client, not {num_examples:,}"
        )
    return np.unique(clients, return_inverse=True)[1].astype(np.int32)


def content_of(file: str) -> str:
    """What tells a file from others, wherever it lies.

    Raises:
        Unreadable: the file cannot be read.
    """
    content = _read(user_files.read_bytes, pathlib.Path(file))
    return hashlib.sha256(content).hexdigest()[:16]


def _read(reader, path):
    """What a reader of `user_files` finds, refused as a partition is."""
    try:
        return reader(path, _MOST_BYTES)
    except user_files.Unreadable as error:
        raise _wrong(path, error.reason) from error


def _from_map(path: pathlib.Path, text: str, num_examples: int) -> np.ndarray:
    """The client's name of each row, of a map from clients to rows."""
    entries = _ENTRY.findall(text)
    rest = re.sub(r"[\s,]", "", _ENTRY.sub("", text))
    if rest != "{}" or not entries:
        raise _wrong(path, f"holds no rows by client, but {reprlib.repr(rest)}")
    names = [name for name, _ in entries]
    if len(set(names)) < len(names):
        raise _wrong(path, f"names {max(names, key=names.count)} twice")
    owners = np.full(num_examples, -1, np.int64)
    for index, (name, rows) in enumerate(entries):
        for row in filter(None, map(str.strip, rows.split(","))):
            number = int(row) if re.fullmatch("[0-9]{1,10}", row) else num_examples
            if number >= num_examples:
                raise _wrong(
                    path,
                    f"client {name} has row {reprlib.repr(row)}, of 0 to "
                    f"{num_examples - 1:,}",
                )
            if owners[number] >= 0:
                raise _wrong(path, f"row {row} is dealt twice")
            owners[number] = index
    if (owners < 0).any():
        raise _wrong(
            path,
            f"deals {(owners >= 0).sum():,} of {num_examples:,} examples; row "
            f"{np.argmin(owners)} has no client",
        )
    return _numbers_if_all_are(names)[owners]


def _numbers_if_all_are(names: list[str]) -> np.ndarray:
    if all(re.fullmatch("[0-9]{1,18}", name) for name in names):
        return np.asarray(names, np.int64)
    return np.asarray(names)


def _wrong(path: pathlib.Path, reason: str) -> user_files.Unreadable:
    remedy = (
        "give the partition of this training set: rows by client, {0: [17, 4], ...}, a "
        "line an example with its client, or a .npy of client numbers"
    )
    return user_files.Unreadable(path, user_files.printable(reason), remedy)
