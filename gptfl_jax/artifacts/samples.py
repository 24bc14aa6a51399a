"""`manifest.jsonl`: the synthetic samples of a folder and how each was made."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from gptfl_jax.artifacts import checked_json
from gptfl_jax.artifacts.files import PathLike, plain, read_plain, write_bytes
from gptfl_jax.artifacts.records import append_lines, whole_lines
from gptfl_jax.errors import UserError


class ManifestError(UserError):
    """A line of manifest.jsonl that no run of ours wrote."""


class Sample(NamedTuple):
    """One line of `manifest.jsonl`: a synthetic sample and how it was made.

    Attributes:
        file: path relative to the folder of the manifest, with forward slashes.
        label: class name.
        prompt: what the generator was given.
        seed: seed of the sample's own key.
        guidance: classifier-free guidance scale; None for generators without one.
        model: the generator.
        licence: the generator's, as "cc-by-nc-sa-4.0"; "unknown" where its files do not
            say; None, and not written, where nobody looked, as in earlier versions.
        speaker: number of the speaker vector; None, and not written, where none speaks.
        snr_db: signal-to-noise ratio of white noise added; None, and not written, where
            none was.
        lora: the LoRA weights that were added to the generator's, with their scale;
            None, and not written, where none were.
        sha256: digest of the file, as hexadecimal digits; None, and not written, where
            it is not known, as in manifests of earlier versions.
    """

    file: str
    label: str
    prompt: str
    seed: int
    guidance: float | None
    model: str
    speaker: int | None = None
    snr_db: float | None = None
    licence: str | None = None
    sha256: str | None = None
    lora: str | None = None


def read_manifest(folder: PathLike) -> list[Sample]:
    """Reads `manifest.jsonl` of a folder of synthetic samples.

    A last line torn by a kill is left out. A sample listed twice counts once. Whether
    the files are there and whole is for the reader of the samples to see.

    Raises:
        ManifestError: a line that is not a sample, or whose file is outside the folder
            (an absolute path, `..`, or through a symbolic link).
    """
    folder = pathlib.Path(folder)
    path = folder / "manifest.jsonl"
    samples: dict[str, Sample] = {}
    root = folder.resolve()
    # Resolving a path touches the disk at every level; samples share few folders.
    is_inside = functools.cache(functools.partial(_is_inside, root))
    for number, line in enumerate(whole_lines(path), start=1):
        sample = _parse_sample(line, f"{path} line {number}")
        parent, _, name = sample.file.rpartition("/")
        safe = (
            name not in ("", ".", "..")
            and not {"\\", "\0"} & set(sample.file)
            and is_inside(parent)
            and (not os.path.islink(root / sample.file) or is_inside(sample.file))
        )
        if not safe:
            raise ManifestError(
                f"{path} line {number}: the file {ascii(sample.file)} is outside "
                f"{folder}. Remove the line, or make the samples again"
            )
        samples[sample.file] = sample
    return list(samples.values())


def _is_inside(root: pathlib.Path, path: str) -> bool:
    """Whether a path below `root` stays there, by its parts and where links lead."""
    below = pathlib.PurePosixPath(path)
    if below.is_absolute() or ".." in below.parts:
        return False
    try:
        return (root / below).resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):  # links in a circle, among others
        return False


_SHAPE = {
    **{name: "text" for name in ("file", "label", "prompt", "model")},
    "seed": "whole",
    "guidance": ("null", "number"),
    "speaker?": ("null", "whole"),
    "snr_db?": ("null", "number"),
    "licence?": ("null", "text"),
    "sha256?": ("null", "text"),
    "lora?": ("null", "text"),
}


def _parse_sample(line: bytes, where: str) -> Sample:
    try:
        record = checked_json.parse(line, _SHAPE)
        for name in record.keys() - set(Sample._fields):
            raise ValueError(f"{ascii(name)} is no field of it")
    except ValueError as error:
        raise ManifestError(
            f"{where}: not a sample with {', '.join(Sample._fields)} ({error}). "
            "Remove the line, or make the samples again"
        ) from None
    return Sample(**record)


CHANGED = "changed since it was made: start the generator again to make it anew"
"""Said of a file that is not the one its line has the digest of."""


def digest(content: bytes) -> str:
    """What `Sample.sha256` holds, of a file's content."""
    return hashlib.sha256(content).hexdigest()


def is_changed(path: PathLike, sha256: str | None) -> bool:
    """Whether a file is another than the one its line has the digest of.

    Not where it is missing or cannot be read, or the line has none.
    """
    try:
        return sha256 is not None and digest(read_plain(path)) != sha256
    except OSError:
        return False


def append_samples(folder: PathLike, samples: Sequence[Sample]) -> None:
    """Appends samples to `manifest.jsonl`: call it once their files are written.

    A kill leaves whole lines and at most one torn one, which readers leave out and the
    next call removes.
    """
    lines = _sample_lines(samples)
    if lines:
        append_lines(pathlib.Path(folder) / "manifest.jsonl", lines)


def write_manifest(folder: PathLike, samples: Sequence[Sample]) -> None:
    """Makes `manifest.jsonl` hold exactly these samples, in this order.

    A file that already does is left alone.
    """
    path = pathlib.Path(folder) / "manifest.jsonl"
    data = "".join(line + "\n" for line in _sample_lines(samples)).encode()
    if not path.exists() or path.read_bytes() != data:
        write_bytes(path, data)


def _sample_lines(samples: Sequence[Sample]) -> list[str]:
    lines = []
    for sample in samples:
        record = sample._asdict()
        for name in ("speaker", "snr_db", "licence", "sha256", "lora"):
            if record[name] is None:
                del record[name]
        lines.append(json.dumps(plain(record)))
    return lines
