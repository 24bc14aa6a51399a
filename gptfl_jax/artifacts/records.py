"""Records of a run: files that grow a line a record, `metrics.jsonl`, `run.json`.

A line that a kill has torn is dropped by the next reader and cut off by the next
writer.
"""

import contextlib
import datetime
import fcntl
import functools
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from gptfl_jax.artifacts import checked_json
from gptfl_jax.artifacts.checked_json import Shape
from gptfl_jax.artifacts.files import (
    PathLike,
    explained,
    make_folder,
    open_to_write,
    plain,
    read_plain,
    remove_leftovers,
    require_no_link,
    write_json,
    write_text,
)
from gptfl_jax.artifacts.locking import require_held
from gptfl_jax.errors import UserError


def whole_lines(path: PathLike) -> list[bytes]:
    """The complete lines of a file; a last one without its newline is left out.

    Raises:
        UserError: it cannot be read. One that is not there has no lines.
    """
    try:
        return read_plain(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{path} cannot be read ({reason}): put the file back, or remove it"
        ) from None


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; what is torn or no object is left out."""
    records = []
    for line in whole_lines(path):
        with contextlib.suppress(ValueError):
            records.append(checked_json.parse(line, {}))
    return records


def append_records(path: PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Appends JSON objects to a file, a line each, durably."""
    lines = [json.dumps(plain(record), ensure_ascii=False) for record in records]
    append_lines(pathlib.Path(path), lines)


def append_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Appends whole lines, durably, after cutting off a torn one.

    Raises:
        WriteError: no right to, no space, or the file is a link.
        WorkdirInUse: the lock that keeps other runs away was deleted.
    """
    require_held(path)
    make_folder(path.parent)
    text = "".join(line + "\n" for line in lines)
    data = text.encode(errors="backslashreplace")
    descriptor = open_to_write(path)
    try:
        with explained(path.parent):
            # Processes of one run may share the file.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = _end_of_whole_lines(descriptor)
            os.ftruncate(descriptor, end)
            try:
                _write_at(descriptor, end, data)
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)
                raise
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset, data = offset + written, data[written:]


def _end_of_whole_lines(descriptor: int) -> int:
    """Offset just behind the last newline of a file."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


class Metrics:
    """A `metrics.jsonl` that is written a line a step. The first process writes.

    Args:
        path: the file.
        resume_after: the step of the checkpoint that the run goes on from; lines of
            later steps, written before the kill, are dropped because they come again.
            None starts the file anew.
        last_line: the step of the last line that the run had written by then; None:
            `resume_after`.
        follow: is given each line once it is written, as by `trackers.Tracking.line`.

    Raises:
        UserError: the file does not reach that line.
    """

    def __init__(
        self,
        path: PathLike,
        resume_after: int | None = None,
        last_line: int | None = None,
        follow: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.path = pathlib.Path(path)
        self._follow = follow
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        require_no_link(self.path, self.path.parent)
        remove_leftovers(self.path.parent, [self.path.name])
        kept = []
        if resume_after is not None:
            last_line = resume_after if last_line is None else last_line
            kept = read_metrics_until(path, last_line, resume_after)
        text = "".join(json.dumps(plain(line)) + "\n" for line in kept)
        write_text(self.path, text)

    def write(self, step: int, **scalars: Any) -> None:
        """Appends one line. Arrays without axes count as numbers; NaN becomes null."""
        if self._writes:
            line = plain({"step": int(step), **scalars})
            append_lines(self.path, [json.dumps(line)])
            if self._follow is not None:
                self._follow(line)


# The values of a line of metrics; null stands for NaN.
NUMBER = ("null", "number")
_LINE = {"step": "whole", "*": ("text", "flag", *NUMBER)}


def read_metrics(
    path: PathLike, fields: Mapping[str, Shape] = _LINE
) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; null is read as NaN. A torn last one is left out.

    Args:
        fields: what a line holds besides its step, see `checked_json`.

    Raises:
        UserError: a line is none of metrics, or its step does not follow the one before
            it.
    """
    path = pathlib.Path(path)
    lines: list[dict[str, Any]] = []
    for number, content in enumerate(whole_lines(path), start=1):
        try:
            line = checked_json.parse(content, {**_LINE, **fields})
            if lines and line["step"] <= lines[-1]["step"]:
                raise ValueError(f"step {line['step']} after {lines[-1]['step']}")
        except ValueError as error:
            start = content[:80].decode(errors="replace")
            raise UserError(
                f"{path} line {number} is not a line of metrics: {ascii(start)} "
                f"({error}). Remove the line, or delete {path.parent} and run the "
                "stage again"
            ) from None
        lines.append(
            {name: math.nan if each is None else each for name, each in line.items()}
        )
    return lines


def read_metrics_until(
    path: PathLike,
    last_line: int,
    step: int | None = None,
    fields: Mapping[str, Shape] = _LINE,
) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` up to a step that there is a checkpoint of.

    Args:
        last_line: the step of the last one that was written before the checkpoint; 0:
            maybe none.
        step: of the checkpoint; None: `last_line`.
        fields: as `read_metrics` takes them.

    Raises:
        UserError: that line is missing, so the file has lost lines.
    """
    step = last_line if step is None else step
    lines = [line for line in read_metrics(path, fields) if line["step"] <= step]
    reached = lines[-1]["step"] if lines else None
    if last_line and (reached is None or reached < last_line):
        ends = "has no line" if reached is None else f"ends at step {reached}"
        raise UserError(
            f"{path} {ends}, but there is a checkpoint of step {step}: lines are lost. "
            f"Put the file back from a copy, or delete {pathlib.Path(path).parent} to "
            "run it anew"
        )
    return lines


def require(path: PathLike, command: str) -> pathlib.Path:
    """The path of what an earlier stage made.

    Raises:
        UserError: it is not there; the message says which command makes it.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing: make it with `{command}`")
    return path


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that this package is in, "+" where it was changed.

    None of an installed package, or where git is missing.
    """
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        head, changes = (
            subprocess.run(
                [*git, *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def machine() -> dict[str, Any]:
    """What computes: versions, commit, and the devices of all processes."""
    packages = ("gptfl-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "versions": versions,
        "commit": _commit(),
        "platform": platform.platform(),
        "processes": jax.process_count(),
        "devices": [f"{device.platform}:{device.id}" for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
    }


def write_run_record(
    folder: PathLike,
    config: ConfigDict,
    flops: Mapping[str, int | float | None] | None = None,
) -> None:
    """Writes `run.json`: command, config, versions, commit, devices and date.

    Args:
        folder: of the run.
        config: of the run.
        flops: floating-point operations of it, and of what led to it, by what they
            were for; None: not known.
    """
    if jax.process_index() != 0:
        return
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.orig_argv,
        "config": config,
        **machine(),
    }
    if flops is not None:
        record["flops"] = flops
    write_json(pathlib.Path(folder) / "run.json", record)


def read_flops(folder: PathLike) -> dict[str, int | float | None]:
    """Floating-point operations that a run's record has, by what they were for.

    None stands for what is not known; empty where there is no record, or one of an
    earlier version.

    Raises:
        UserError: the record is damaged.
    """
    path = pathlib.Path(folder) / "run.json"
    shape = {"flops?": {"*": NUMBER}}
    try:
        record = checked_json.read_json(
            path, shape, "delete it, and what it cost is unknown"
        )
    except FileNotFoundError:
        return {}
    return record.get("flops", {})
