"""Digests of all files of a folder, in a file that `sha256sum -c` reads as well."""

import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from gptfl_jax.artifacts.files import read_plain, write_text

NAME = "SHA256SUMS"
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>.+)")


def write(folder: pathlib.Path) -> None:
    """Writes `SHA256SUMS` of all files below a folder. Call it when all are written.

    Raises:
        WriteError: no space, or no right to.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != NAME
    )
    found = _digests(folder, names)
    text = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    write_text(folder / NAME, text)


def read(folder: pathlib.Path) -> dict[str, str]:
    """The digest of each file, by its path in the folder.

    Raises:
        ValueError: `SHA256SUMS` is missing or damaged.
    """
    try:
        lines = read_plain(folder / NAME).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(f"{NAME}: {reason}") from None
    matches = [_LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or not matches or None in matches:
        raise ValueError(f"{NAME} has changed")
    return {match["name"]: match["digest"] for match in matches}


def fault(folder: pathlib.Path, digests: Mapping[str, str]) -> str:
    """Which file is not what its digest says; empty: all are.

    The files are read in threads, at the speed of the disk or about 1 GB/s a core. What
    reads them next has them in memory.
    """
    found = _digests(folder, digests)
    return next(
        (
            f"{name} {'has changed' if found[name] else 'cannot be read'}"
            for name, digest in digests.items()
            if found[name] != digest
        ),
        "",
    )


def _digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """Digests of files, empty for those that cannot be read."""

    def digest(name: str) -> str:
        try:
            with open(folder / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""

    names = list(names)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))
