"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from their released archives."""

import gzip
import pathlib
import tarfile
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from gptfl_jax import safe_pickle, user_files
from gptfl_jax.data.datasets import Dataset, Source
from gptfl_jax.errors import UserError

# The archives unpack to 178 MB, of which the largest file has 155 MB.
_MOST_BYTES = 2**28

_PIXELS = 3 * 32 * 32

# Published means and deviations of CIFAR-10's channels, by which GPT-FL's federations
# normalise it; CIFAR-100 goes by ImageNet's there.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)

Examples = tuple[UInt8[np.ndarray, "examples 32 32 3"], Int32[np.ndarray, " examples"]]


def cifar10(folder: str) -> Source:
    """CIFAR-10, 32x32 RGB, 50,000 training and 10,000 test pictures.

    They are normalised by the constants that are published for this set.

    Args:
        folder: holds the released archive (python or binary version, `.tar.gz`), or the
            folder it unpacks to, or is that folder.
    """
    batches = [f"data_batch_{i}" for i in range(1, 6)]
    released = ("cifar-10-batches-py", "cifar-10-batches-bin")
    files = _Archive(folder, released, "cifar-10")
    if files.has("batches.meta.txt"):
        names = files.class_names("batches.meta.txt", "", 10)
        reader = _binary_reader(1)
    else:
        names = files.class_names("batches.meta", "label_names", 10)
        reader = _pickle_reader("labels")
    source = files.source(names, batches, ["test_batch"], reader)
    return source._replace(mean=_CIFAR10_MEAN, std=_CIFAR10_STD)


def cifar100(folder: str) -> Source:
    """CIFAR-100 with its 100 fine labels; `folder` as in `cifar10`."""
    files = _Archive(folder, ("cifar-100-python", "cifar-100-binary"), "cifar-100")
    if files.has("fine_label_names.txt"):
        names = files.class_names("fine_label_names.txt", "", 100)
        return files.source(names, ["train"], ["test"], _binary_reader(2))
    names = files.class_names("meta", "fine_label_names", 100)
    return files.source(names, ["train"], ["test"], _pickle_reader("fine_labels"))


# What one file holds, and the ending of such files. A reader gives [examples, 3072]
# pixels and a label for each, and raises ValueError.
_Reader = tuple[str, Callable[[bytes], tuple[np.ndarray, Sequence[int]]]]


def _binary_reader(label_bytes: int) -> _Reader:
    """Records of label bytes (the last is the fine one) and 3 planes of 32x32."""

    def read(content):
        size = label_bytes + _PIXELS
        if not content or len(content) % size:
            raise ValueError(
                f"truncated: {len(content)} bytes are not records of {size}"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, size)
        labels = records[:, label_bytes - 1].tolist()
        return records[:, label_bytes:], labels

    return ".bin", read


def _pickle_reader(labels_name: str) -> _Reader:
    def read(content):
        batch = safe_pickle.load_arrays(content)
        pixels, labels = batch.get("data"), batch.get(labels_name)
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.shape[1:] != (_PIXELS,)
        ):
            raise ValueError("it holds no pictures")
        if isinstance(labels, np.ndarray):
            labels = labels.tolist()
        if not isinstance(labels, list):
            raise ValueError("it holds no labels")
        return pixels, labels

    return "", read


class _Archive:
    """Files of a released archive, unpacked or in its `.tar.gz`."""

    def __init__(self, folder: str, names: tuple[str, str], prefix: str):
        root = pathlib.Path(folder)
        self._files: dict[str, pathlib.Path] = {}
        self._unpacked: dict[str, bytes] = {}
        for place in (*(root / name for name in names), root):
            if (
                any(place.glob("*batch*"))
                or any(place.glob("*label*"))
                or ((place / "train").is_file() and (place / "test").is_file())
            ):
                self._files = {p.name: p for p in place.iterdir() if p.is_file()}
                self._where = place
                return
        archives = [
            path
            for path in sorted(root.glob(f"{prefix}*.tar.gz"))
            if not (prefix == "cifar-10" and path.name.startswith("cifar-100"))
        ]
        if not archives:
            raise UserError(
                f"config.data.folder = {folder!r}: holds neither {' nor '.join(names)} "
                f"nor {prefix}-*.tar.gz; get it from "
                "https://www.cs.toronto.edu/~kriz/cifar.html"
            )
        self._where = archives[0]
        self._unpacked = _unpack(self._where)

    def has(self, name: str) -> bool:
        return name in self._files or name in self._unpacked

    def class_names(self, file: str, key: str, count: int) -> tuple[str, ...]:
        """The names in a text file, or under a key of a pickle."""
        content = self._read(file)
        try:
            if key:
                names = safe_pickle.load_arrays(content).get(key)
                if not isinstance(names, list):
                    raise ValueError(f"it has no {key}")
            else:
                names = content.split()
            names = [n.decode() if isinstance(n, bytes) else n for n in names]
            texts = {name for name in names if isinstance(name, str) and name}
            if not len(texts) == len(names) == count:
                raise ValueError(
                    f"it names {len(texts)} classes in {len(names)} lines, not {count}"
                )
        except ValueError as error:
            raise self._broken(file, error) from error
        return tuple(names)

    def source(
        self,
        class_names: tuple[str, ...],
        train: Sequence[str],
        test: Sequence[str],
        reader: _Reader,
    ) -> Source:
        """The data set in files of these names, but for their ending."""
        return Source(
            *(
                Dataset(*self._examples(files, len(class_names), reader), class_names)
                for files in (train, test)
            )
        )

    def _examples(
        self, names: Sequence[str], num_classes: int, reader: _Reader
    ) -> Examples:
        ending, read = reader
        all_pixels, all_labels = [], []
        for name in names:
            file = f"{name}{ending}"
            content = self._read(file)
            try:
                pixels, labels = read(content)
                if len(labels) != len(pixels):
                    raise ValueError(
                        f"it has {len(labels)} labels for {len(pixels)} pictures"
                    )
                if not all(type(n) is int and 0 <= n < num_classes for n in labels):
                    raise ValueError(
                        f"it has labels that are no numbers of 0 to {num_classes - 1}"
                    )
            except ValueError as error:
                raise self._broken(file, error) from error
            all_pixels.append(pixels)
            all_labels += labels
        planes = np.concatenate(all_pixels).reshape(-1, 3, 32, 32)
        return (
            np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
            np.asarray(all_labels, np.int32),
        )

    def _read(self, name: str) -> bytes:
        if name in self._files:
            return user_files.read_bytes(self._files[name], _MOST_BYTES)
        if name in self._unpacked:
            return self._unpacked[name]
        raise UserError(f"{self._where}: the file {name} is missing: get it again")

    def _broken(self, file: str, error: ValueError) -> user_files.Unreadable:
        where = self._files.get(file, f"{self._where}: {file}")
        return user_files.Unreadable(where, f"no file of CIFAR ({error})")


class _Bounded(gzip.GzipFile):
    """What a file unpacks to, up to `_MOST_BYTES` and no further."""

    def read(self, size):
        self.check(self.tell() + size)
        return super().read(size)

    def seek(self, offset, whence=0):
        self.check(offset)
        return super().seek(offset, whence)

    def check(self, position: int) -> None:
        if position > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES:,} bytes")


def _unpack(path: pathlib.Path) -> dict[str, bytes]:
    """The files in an archive by their names, but for folders."""
    contents = {}
    with user_files.open_plain(path, _MOST_BYTES) as file:
        try:
            with tarfile.open(fileobj=_Bounded(fileobj=file), mode="r:") as tar:
                for member in tar:
                    tar.fileobj.check(member.offset_data + member.size)
                    # A sparse file has any size, and takes no bytes to have it.
                    if member.isreg() and not member.issparse():
                        name = pathlib.PurePosixPath(member.name).name
                        contents[name] = tar.extractfile(member).read()
        except Exception as error:  # a damaged archive raises almost anything
            raise user_files.Unreadable(
                path, f"no archive of CIFAR ({user_files.brief(error)})"
            ) from error
    return contents
