"""What `torch.save` writes (`.bin`, `.pth`), read without torch as numpy arrays.

Both the zip form and that of torch before 1.6. A file is a pickle of containers and
tensors; a tensor is a view of a storage, whose numbers lie beside the pickle.
"""

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gptfl_jax import safe_pickle, user_files
from gptfl_jax.safe_pickle import Damaged, Function

_DTYPES = {
    "BoolStorage": np.dtype(np.bool_),
    "ByteStorage": np.dtype(np.uint8),
    "CharStorage": np.dtype(np.int8),
    "ShortStorage": np.dtype(np.int16),
    "IntStorage": np.dtype(np.int32),
    "LongStorage": np.dtype(np.int64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
}
# The first number of a file written before torch 1.6.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage(NamedTuple):
    """Stands for a class such as `torch.FloatStorage` while a pickle is read."""

    dtype: np.dtype


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """What `torch._utils._rebuild_tensor_v2` makes, as a view; nothing is trusted."""
    shape, strides = map(safe_pickle.checked_shape, (shape, strides))
    if (
        not isinstance(storage, np.ndarray)
        or len(shape) != len(strides)
        or not safe_pickle.is_size(offset)
    ):
        raise Damaged("a tensor of impossible form")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    # Steps of 0 would make any number of values of one.
    if count and (last >= storage.size or count > storage.size):
        raise Damaged("a tensor that reaches beyond its data")
    return np.lib.stride_tricks.as_strided(
        storage[offset:],
        shape,
        tuple(step * storage.itemsize for step in strides),
        writeable=False,
    )


_NAMES: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Function(safe_pickle.ordered_dict),
    ("torch", "Size"): Function(safe_pickle.checked_shape),
    ("torch._utils", "_rebuild_tensor"): Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(lambda data, *_: data),
} | {
    (module, name): _Storage(dtype)
    for name, dtype in _DTYPES.items()
    for module in ("torch", "torch.storage")
}


def read(path: str | os.PathLike[str]) -> Any:
    """What a file holds: tensors as arrays, numbers, text and the built-in containers.

    Raises:
        safe_pickle.Forbidden: it names anything else.
        safe_pickle.Damaged: it is damaged, or not written by `torch.save`.
        UserError: it cannot be opened.
    """
    with user_files.open_plain(path) as file:
        try:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_old(file)
        except Damaged:
            raise
        except Exception as error:  # a damaged file raises almost anything
            raise Damaged(user_files.brief(error)) from error


class _Storages:
    """The storages that a pickle refers to, made when they are first met."""

    def __init__(self, make: Callable[[np.dtype, str, int], np.ndarray]):
        self.made: dict[str, np.ndarray] = {}
        self._make = make

    def __call__(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, size, *view = pid
        if (
            kind != "storage"
            or not isinstance(storage, _Storage)
            or not isinstance(key, str)
            or not safe_pickle.is_size(size)
            or any(part is not None for part in view)
        ):
            raise Damaged("a storage of unknown kind")
        if key not in self.made:
            self.made[key] = self._make(storage.dtype, key, size)
        if self.made[key].size < size or self.made[key].dtype != storage.dtype:
            raise Damaged("a storage of the wrong size")
        return self.made[key][:size]


def _read_zip(file: io.BufferedReader) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # torch compresses nothing; what does may unpack to any size.
        if sum(member.file_size for member in members) > _size_of(file):
            raise Damaged("its parts are larger than the whole")
        names = [member.filename for member in members]
        root = next(
            (
                name.removesuffix("data.pkl")
                for name in names
                if name.count("/") <= 1 and name.endswith("data.pkl")
            ),
            None,
        )
        if root is None:
            raise Damaged("it holds no data.pkl")
        order = "<"
        if f"{root}byteorder" in names:
            order = {b"little": "<", b"big": ">"}[archive.read(f"{root}byteorder")]

        def make(dtype, key, size):
            return _native(archive.read(f"{root}data/{key}"), dtype, order)

        with archive.open(f"{root}data.pkl") as content:
            return safe_pickle.load(content, _NAMES, _Storages(make))


def _read_old(file: io.BufferedReader) -> Any:
    left = _size_of(file)

    def make(dtype, key, size):
        # The data follow the pickle: tensors are views of an array that is filled then.
        nonlocal left
        left -= size * dtype.itemsize
        if left < 0:
            raise Damaged("its storages are larger than the file")
        return np.empty(size, dtype)

    storages = _Storages(make)

    def load():
        return safe_pickle.load(file, _NAMES, storages)

    if load() != _OLD_MAGIC:
        raise Damaged("no file of torch.save")
    load()  # version of the protocol
    order = "<" if load().get("little_endian", True) else ">"
    value = load()
    keys = load()
    if sorted(keys) != sorted(storages.made):
        raise Damaged("it does not hold the storages that it refers to")
    for key in keys:
        (size,) = struct.unpack(order + "q", file.read(8))
        storage = storages.made[key]
        content = file.read(storage.nbytes)
        if size != storage.size or len(content) != storage.nbytes:
            raise Damaged("a storage of the wrong size")
        storage[:] = _native(content, storage.dtype, order)
    return value


def _size_of(file: io.BufferedReader) -> int:
    return os.fstat(file.fileno()).st_size


def _native(data: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    raw = np.frombuffer(data, np.dtype(f"{order}u{dtype.itemsize}"))
    return raw.astype(raw.dtype.newbyteorder("=")).view(dtype)
