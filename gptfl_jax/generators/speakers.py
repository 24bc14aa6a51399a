"""Speaker vectors from `.npy` files, as those of Matthijs/cmu-arctic-xvectors.

The repository holds an x-vector (Snyder et al. 2018) for each utterance of seven
speakers of CMU Arctic, in an archive of `.npy` files. They are numbered in the order of
their names, as its users number them.
"""

import io
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from gptfl_jax import hub
from gptfl_jax.configuration import UserError

CMU_ARCTIC = "Matthijs/cmu-arctic-xvectors"
"""For models that have no speakers of their own."""

# A member of an archive may not unpack to more: millions of vectors.
_LARGEST_FILE = 2**31


class Speakers(NamedTuple):
    """Vectors and where each is from, in the order of the names."""

    names: tuple[str, ...]
    """The file's name without its ending, with the row where a file has several."""
    vectors: Float32[np.ndarray, "speakers features"]


def speakers_of(model: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder `speakers` of a speech model, or else `CMU_ARCTIC`.

    Raises:
      UserError: there is no such model.
    """
    return hub.part(model, "speakers", ["*.npy", "*.zip"]) or CMU_ARCTIC


def read_speakers(path_or_id: str | os.PathLike[str]) -> Speakers:
    """Reads speaker vectors. Nothing in a file is executed, no archive is extracted.

    Args:
      path_or_id: a `.npy` file of one vector or a matrix of them, a `.zip` of such
        files, a folder with `.npy` files at any depth or else one `.zip`, or a data set
        on Hugging Face ("owner/name") that is such a folder.

    Raises:
      UserError: there are no vectors, a file is damaged or holds something else, or
        vectors differ in size.
    """
    path = pathlib.Path(path_or_id).expanduser()
    if not path.exists():
        path = hub.snapshot(path_or_id, ["*.zip", "*.npy"], repo_type="dataset")
    if path.is_dir():
        files = sorted(path.rglob("*.npy"))
        archives = sorted(path.rglob("*.zip"))
        if not files and len(archives) == 1:
            path = archives[0]
        elif not files:
            holds = "several .zip files" if archives else "no .npy or .zip file"
            raise UserError(f"{path} holds {holds}: name a file with speaker vectors")
    if path.is_dir():
        contents = ((file.stem, str(file), file.read_bytes()) for file in files)
    elif path.suffix == ".zip":
        contents = _members(path)
    else:
        contents = iter([(path.stem, str(path), path.read_bytes())])
    names, rows = [], []
    for stem, source, content in contents:
        vectors = _vectors(content, source)
        if rows and vectors.shape[1] != rows[0].shape[1]:
            raise UserError(
                f"{source} holds vectors of {vectors.shape[1]} numbers, the files "
                f"before it of {rows[0].shape[1]}: keep one kind of vector"
            )
        many = len(vectors) > 1
        names += [f"{stem}[{i}]" if many else stem for i in range(len(vectors))]
        rows.append(vectors)
    if not rows:
        raise UserError(f"{path} holds no .npy file: name one with speaker vectors")
    return Speakers(tuple(names), np.concatenate(rows))


def _members(path: pathlib.Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if member.filename.endswith(".npy")
                and not member.filename.startswith("__MACOSX/")
            ]
            for member in sorted(members, key=lambda member: member.filename):
                name = pathlib.PurePosixPath(member.filename)
                if member.file_size > _LARGEST_FILE:
                    raise UserError(f"{path}: {name} is too large for speaker vectors")
                yield name.stem, f"{path}: {name}", archive.read(member)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: damaged ({error}): get the file again") from error


def _vectors(content: bytes, source: str) -> Float32[np.ndarray, "rows features"]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if array.ndim not in (1, 2) or array.dtype.kind != "f" or not array.size:
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError("it holds numbers that are not finite")
    except (ValueError, TypeError, AttributeError, EOFError, MemoryError) as error:
        raise UserError(
            f"{source}: no file of speaker vectors ({error}): get it again, or name "
            "another"
        ) from error
    return np.atleast_2d(array).astype(np.float32)
