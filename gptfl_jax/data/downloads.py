"""Where the files of a data set lie, and how they get there."""

import hashlib
import os
import pathlib
import tarfile
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from gptfl_jax import user_files, web_files
from gptfl_jax.errors import UserError


class Release(NamedTuple):
    """An archive that its makers publish, and what it must hold."""

    url: str
    algorithm: str
    """Of the digest, as `hashlib` names it."""
    digest: str
    """Of the archive, or of `files` in it."""
    files: str = ""
    """Pattern of the files that count, where the archive is made on demand and its
    bytes may change: the digest is of what `sha256sum` prints in their folder, in the
    order of their names, and nothing else is unpacked."""


def locate(
    folder: str,
    places: Sequence[str],
    has: str,
    what: str,
    origin: str,
    release: Release | None = None,
    to: str = "",
) -> pathlib.Path:
    """The first of `places` in the folder that has a file.

    Args:
        folder: `config.data.folder`.
        places: folders in it; "." is the folder itself.
        has: pattern of the file.
        what: the data set's name, for the message.
        origin: where to get it, for the message.
        release: gets it to the folder `to` where no place has the file; None: does not.

    Raises:
        UserError: no place has the file, or it cannot be downloaded.
    """
    root = _first(folder, places, has)
    if root is None and release is not None:
        download(release, pathlib.Path(folder) / to)
        root = _first(folder, places, has)
    if root is None:
        raise UserError(
            f"config.data.folder = {folder!r}: holds no {has}, hence not {what}; get "
            f"it from {origin}"
        )
    return root


def _first(folder: str, places: Sequence[str], has: str) -> pathlib.Path | None:
    for place in places:
        root = pathlib.Path(folder) / place
        if root.is_dir() and any(root.glob(has)):
            return root
    return None


def download(release: Release, target: pathlib.Path) -> None:
    """Gets an archive, checks it, and unpacks it to `target`, whole or not at all.

    An archive that holds one folder is unpacked to what is in it. Nothing is unpacked
    before its digest is the one expected.

    Raises:
        UserError: it cannot be had, is damaged or another, or cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".download-"
        ) as temporary:
            archive = pathlib.Path(temporary) / "archive"
            web_files.download(release.url, archive)
            unpacked = pathlib.Path(temporary) / "unpacked"
            if release.files:
                root = unpacked / _unpack_files(release, archive, unpacked)
            else:
                with archive.open("rb") as file:
                    found = hashlib.file_digest(file, release.algorithm)
                _check(release, found.hexdigest())
                with tarfile.open(archive) as tar:
                    tar.extractall(unpacked, filter="data")
                inside = list(unpacked.iterdir())
                alone = len(inside) == 1 and inside[0].is_dir()
                root = inside[0] if alone else unpacked
            os.replace(root, target)
    except Exception as error:  # a damaged archive raises almost anything
        failed = isinstance(error, web_files.DownloadFailed)
        if isinstance(error, UserError) and not failed:
            raise
        reason = error.reason if failed else user_files.brief(error)
        raise UserError(
            f"{release.url}: cannot be downloaded to {target} ({reason}): try again, "
            "or download and unpack it there yourself"
        ) from error


def _unpack_files(
    release: Release, archive: pathlib.Path, to: pathlib.Path
) -> pathlib.PurePosixPath:
    """Unpacks `release.files` if they are the right ones; returns their root."""
    with tarfile.open(archive) as tar:
        # A sparse file has any size, and takes no bytes to have it.
        files = {
            pathlib.PurePosixPath(member.name): member
            for member in tar
            if member.isreg() and not member.issparse()
        }
        files = {path: files[path] for path in files if path.match(release.files)}
        digests = {
            path.name: hashlib.file_digest(tar.extractfile(member), release.algorithm)
            for path, member in files.items()
        }
        lines = [f"{digests[name].hexdigest()}  {name}\n" for name in sorted(digests)]
        found = hashlib.new(release.algorithm, "".join(lines).encode()).hexdigest()
        _check(release, found)
        tar.extractall(to, members=files.values(), filter="data")
    depth = len(pathlib.PurePosixPath(release.files).parts)
    return next(iter(files)).parents[depth - 1]


def _check(release: Release, found: str) -> None:
    if found != release.digest:
        raise UserError(
            f"{release.url}: the {release.algorithm} of {release.files or 'it'} is "
            f"{found} and should be {release.digest}: try again, or get it by other "
            "means"
        )
