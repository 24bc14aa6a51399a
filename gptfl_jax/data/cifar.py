"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from their released archives."""

import io
import pathlib
import pickle
import tarfile

import numpy as np

from gptfl_jax import configuration
from gptfl_jax.data.datasets import Dataset, Source


def cifar10(folder: str) -> Source:
    """CIFAR-10 (Krizhevsky 2009), 32x32 RGB, 50,000 training and 10,000 test pictures.

    Args:
      folder: holds the released archive (python or binary version, `.tar.gz`), or the
        folder it unpacks to, or is that folder.
    """
    files = _Archive(
        folder, ("cifar-10-batches-py", "cifar-10-batches-bin"), ("cifar-10",)
    )
    if files.has("batches.meta.txt"):
        names = files.read("batches.meta.txt").decode().split()
        batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
        train = _cifar_binary([files.read(name) for name in batches], 1)
        test = _cifar_binary([files.read("test_batch.bin")], 1)
    else:
        names = _unpickle_arrays(files.read("batches.meta"), "batches.meta")
        names = [_text(name) for name in names["label_names"]]
        batches = [f"data_batch_{i}" for i in range(1, 6)]
        train = _cifar_python(files, batches, "labels")
        test = _cifar_python(files, ["test_batch"], "labels")
    return Source(Dataset(*train, tuple(names)), Dataset(*test, tuple(names)))


def cifar100(folder: str) -> Source:
    """CIFAR-100 with its 100 fine labels; `folder` as in `cifar10`."""
    files = _Archive(folder, ("cifar-100-python", "cifar-100-binary"), ("cifar-100",))
    if files.has("fine_label_names.txt"):
        names = files.read("fine_label_names.txt").decode().split()
        train = _cifar_binary([files.read("train.bin")], 2)
        test = _cifar_binary([files.read("test.bin")], 2)
    else:
        names = _unpickle_arrays(files.read("meta"), "meta")["fine_label_names"]
        names = [_text(name) for name in names]
        train = _cifar_python(files, ["train"], "fine_labels")
        test = _cifar_python(files, ["test"], "fine_labels")
    return Source(Dataset(*train, tuple(names)), Dataset(*test, tuple(names)))


class _Archive:
    """Files of a released archive, unpacked or in its `.tar.gz`."""

    def __init__(self, folder: str, names: tuple[str, ...], prefixes: tuple[str, ...]):
        root = pathlib.Path(folder)
        self._files: dict[str, pathlib.Path] = {}
        self._tar: dict[str, bytes] = {}
        for place in (*(root / name for name in names), root):
            if (
                any(place.glob("*batch*"))
                or any(place.glob("*label*"))
                or ((place / "train").is_file() and (place / "test").is_file())
            ):
                self._files = {p.name: p for p in place.iterdir() if p.is_file()}
                self.where = place
                return
        archives = [
            path
            for prefix in prefixes
            for path in sorted(root.glob(f"{prefix}*.tar.gz"))
            if not (prefix == "cifar-10" and path.name.startswith("cifar-100"))
        ]
        if not archives:
            raise configuration.UserError(
                f"config.data.folder = {folder!r}: holds neither {' nor '.join(names)} "
                f"nor {prefixes[0]}-*.tar.gz; get it from "
                "https://www.cs.toronto.edu/~kriz/cifar.html"
            )
        self.where = archives[0]
        with tarfile.open(archives[0]) as tar:
            for member in tar:
                if member.isfile():
                    content = tar.extractfile(member)
                    self._tar[pathlib.PurePosixPath(member.name).name] = content.read()

    def has(self, name: str) -> bool:
        return name in self._files or name in self._tar

    def read(self, name: str) -> bytes:
        if name in self._files:
            return self._files[name].read_bytes()
        if name in self._tar:
            return self._tar[name]
        raise configuration.UserError(f"{self.where}: the file {name} is missing")


def _cifar_binary(
    parts: list[bytes], label_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Records of label bytes (the last is the fine one) and 3 planes of 32x32."""
    records = np.frombuffer(b"".join(parts), np.uint8)
    size = label_bytes + 3 * 32 * 32
    if not len(records) or len(records) % size:
        raise configuration.UserError(
            f"a CIFAR file is truncated: {len(records)} bytes are not records of {size}"
        )
    records = records.reshape(-1, size)
    return _planes(records[:, label_bytes:]), records[:, label_bytes - 1].astype(
        np.int32
    )


def _cifar_python(
    files: _Archive, names: list[str], labels: str
) -> tuple[np.ndarray, np.ndarray]:
    batches = [_unpickle_arrays(files.read(name), name) for name in names]
    pixels = np.concatenate([batch["data"] for batch in batches])
    return _planes(pixels), np.concatenate(
        [np.asarray(batch[labels], np.int32) for batch in batches]
    )


def _planes(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"forbidden encoding {encoding}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain containers and numpy arrays; refuses every other global."""

    def find_class(self, module: str, name: str) -> object:
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return np._core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":  # how Python 3 spells bytes
            return _latin1
        raise pickle.UnpicklingError(f"forbidden global {module}.{name}")


def _unpickle_arrays(content: bytes, name: str) -> dict:
    try:
        value = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle raises almost anything
        raise configuration.UserError(f"{name}: not a safe pickle ({error})") from error
    return {_text(key): item for key, item in value.items()}
