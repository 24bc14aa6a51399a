"""Speaker vectors from `.npy` files, as those of Matthijs/cmu-arctic-xvectors.

The repository holds an x-vector (Snyder et al. 2018) for each utterance of seven
speakers of CMU Arctic, in an archive of `.npy` files. They are numbered in the order of
their names, as its users number them.
"""

import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from gptfl_jax import user_files
from gptfl_jax.errors import UserError
from gptfl_jax.released import hub

CMU_ARCTIC = "Matthijs/cmu-arctic-xvectors"
"""For models that have no speakers of their own."""

# All files together, unpacked: 131,072 x-vectors. CMU Arctic's 7,931 have 16 MB.
_MOST_BYTES = 2**28


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
            files, a folder with `.npy` files at any depth or else one `.zip`, or a data
            set on Hugging Face ("owner/name") that is such a folder.

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
        contents = _files(files)
    elif path.suffix == ".zip":
        contents = _members(path)
    else:
        contents = _files([path])
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


def _files(paths: Sequence[pathlib.Path]) -> Iterator[tuple[str, str, bytes]]:
    left = _MOST_BYTES
    for path in paths:
        content = user_files.read_bytes(path, left)
        left -= len(content)
        yield path.stem, str(path), content


def _members(path: pathlib.Path) -> Iterator[tuple[str, str, bytes]]:
    with user_files.open_plain(path, _MOST_BYTES) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = [
                    member
                    for member in archive.infolist()
                    if member.filename.endswith(".npy")
                    and not member.filename.startswith("__MACOSX/")
                ]
                size = sum(member.file_size for member in members)
                if size > _MOST_BYTES:
                    raise ValueError(
                        f"it unpacks to {size:,} bytes, more than {_MOST_BYTES:,}"
                    )
                for member in sorted(members, key=lambda member: member.filename):
                    name = pathlib.PurePosixPath(member.filename)
                    yield name.stem, f"{path}: {name}", archive.read(member)
        except UserError:
            raise
        except Exception as error:  # a damaged archive raises almost anything
            raise user_files.Unreadable(
                path, f"damaged ({user_files.brief(error)})"
            ) from error


def _vectors(content: bytes, source: str) -> Float32[np.ndarray, "rows features"]:
    try:
        array = user_files.array_from(content)
        if array.ndim not in (1, 2) or array.dtype.kind != "f" or not array.size:
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError("it holds numbers that are not finite")
    except ValueError as error:
        reason = f"no file of speaker vectors ({user_files.brief(error)})"
        remedy = "get it again, or name another"
        raise user_files.Unreadable(source, reason, remedy) from error
    return np.atleast_2d(array)
