"""Examples that lie in files: chosen, ordered and joined without being read."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped


class Part(NamedTuple):
    """Some rows, mostly of one file."""

    rows: Shaped[np.ndarray, "rows ..."]
    """A memory map, or an array in memory."""
    digests: Shaped[np.ndarray, " rows"] | None = None
    """Of each row, as `digests_of` gives them; None: computed where they are needed."""


class StoredRows:
    """Stands for an array of examples, of which `[...]` reads rows from their files.

    `take` and `join` choose and order rows and read none, so a data set may be larger
    than memory. What is read is a new array. Grey pictures among RGB ones are repeated.
    """

    def __init__(
        self, parts: Sequence[Part], numbers: Int[np.ndarray, " rows"] | None = None
    ):
        """Rows `numbers` of all rows of the parts, one part after another; None: all.

        Raises:
            ValueError: parts whose rows differ in shape (but for channels) or type.
        """
        self._parts = tuple(parts)
        lengths = [len(part.rows) for part in self._parts]
        self._starts = np.cumsum([0, *lengths])
        forms = {(p.rows.dtype.str, p.rows.shape[1:-1]) for p in self._parts}
        if len(forms) != 1:
            raise ValueError(f"rows differ: {sorted(forms)}")
        self._numbers = np.arange(sum(lengths)) if numbers is None else numbers
        first = self._parts[0].rows
        last = max(part.rows.shape[-1] for part in self._parts)
        self.dtype = first.dtype
        self.shape = (len(self._numbers), *first.shape[1:-1], last)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """What the rows would take in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The chosen rows, read; as of an array."""
        rows, *rest = index if isinstance(index, tuple) else (index,)
        numbers = self._numbers[rows]
        if numbers.ndim == 0:
            return self._read(numbers[None])[(0, *rest)]
        return self._read(numbers)[(slice(None), *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, read."""
        return np.asarray(self[:], dtype)

    def take(self, rows: Shaped[np.ndarray, " chosen"]) -> "StoredRows":
        """The rows `rows` (numbers or a mask), not read."""
        return StoredRows(self._parts, self._numbers[rows])

    def digests(self) -> Shaped[np.ndarray, " rows"]:
        """As `digests_of`; rows are read where they are not known."""
        known = [
            digests_of(part.rows) if part.digests is None else part.digests
            for part in self._parts
        ]
        return np.concatenate(known)[self._numbers]

    def _read(self, numbers: Int[np.ndarray, " rows"]) -> np.ndarray:
        result = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        parts = np.searchsorted(self._starts, numbers, "right") - 1
        within = numbers - self._starts[parts]
        for place, (part, row) in enumerate(
            zip(parts.tolist(), within.tolist(), strict=True)
        ):
            result[place] = self._parts[part].rows[row]
        return result


Rows = np.ndarray | StoredRows
"""What may hold examples."""


def take(rows: Rows, chosen: Shaped[np.ndarray, " chosen"]) -> Rows:
    """The rows `chosen` (numbers or a mask): a copy of an array, else not read."""
    return rows.take(chosen) if isinstance(rows, StoredRows) else rows[chosen]


def join(*several: Rows) -> Rows:
    """One after another: a copy where all are arrays, else not read."""
    if not any(isinstance(rows, StoredRows) for rows in several):
        return np.concatenate(several)
    parts, numbers, before = [], [], 0
    for rows in several:
        if not isinstance(rows, StoredRows):
            rows = StoredRows([Part(rows)])
        parts += rows._parts
        numbers.append(rows._numbers + before)
        before += int(rows._starts[-1])
    return StoredRows(parts, np.concatenate(numbers))


def digests_of(rows: Rows) -> Shaped[np.ndarray, " rows"]:
    """A digest of each row's bytes, in hexadecimal."""
    if isinstance(rows, StoredRows):
        return rows.digests()
    return np.array([digest(np.asarray(row)) for row in rows], "S32")


def digest(row: Shaped[np.ndarray, "..."]) -> bytes:
    """128 bits of BLAKE2b over the bytes of an array, in hexadecimal.

    A grey picture has that of the same picture in RGB.
    """
    if row.ndim == 3 and row.shape[-1] == 1:
        row = np.broadcast_to(row, (*row.shape[:2], 3))
    content = np.ascontiguousarray(row)
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
