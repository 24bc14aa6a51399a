"""Records of a run: files that grow a line a record, `metrics.jsonl`, `run.json`.

A line that a kill has torn is dropped by the next reader and cut off by the next
writer.
"""

import contextlib
import datetime
import fcntl
import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from ml_collections import ConfigDict

from gptfl_jax.artifacts.files import (
    PathLike,
    explained,
    make_folder,
    plain,
    write_json,
    write_text,
)
from gptfl_jax.configuration import UserError


def whole_lines(path: pathlib.Path) -> list[str]:
    """The complete lines of a file; a last one without its newline is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; what is torn or no object is left out."""
    records = []
    for line in whole_lines(pathlib.Path(path)):
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def append_records(path: PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON objects to a file, a line each, durably."""
    lines = [json.dumps(plain(record), ensure_ascii=False) for record in records]
    append_lines(pathlib.Path(path), lines)


def append_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Append whole lines, durably, after cutting off a torn one."""
    make_folder(path.parent)
    data = "".join(line + "\n" for line in lines).encode()
    with explained(path.parent):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
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
    """

    def __init__(self, path: PathLike, resume_after: int | None = None):
        self.path = pathlib.Path(path)
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        kept = [] if resume_after is None else read_metrics(path)
        kept = [line for line in kept if line["step"] <= resume_after]
        text = "".join(json.dumps(plain(line)) + "\n" for line in kept)
        write_text(self.path, text)

    def write(self, step: int, **scalars: Any) -> None:
        """Append one line. Arrays without axes count as numbers; NaN becomes null."""
        if self._writes:
            line = json.dumps(plain({"step": int(step), **scalars}))
            append_lines(self.path, [line])


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; null is read as NaN. Torn lines are left out."""
    path = pathlib.Path(path)
    records = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path} line {number} is not a line of metrics: {line[:80]!r}. "
                "Remove the line, or run the stage again"
            ) from None
        records.append(
            {
                name: math.nan if value is None else value
                for name, value in record.items()
            }
        )
    return records


def require(path: PathLike, command: str) -> pathlib.Path:
    """The path of what an earlier stage made.

    Raises:
        UserError: it is not there; the message says which command makes it.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing: make it with `{command}`")
    return path


def write_run_record(folder: PathLike, config: ConfigDict) -> None:
    """Write `run.json`: the command, the config, versions, devices and the date."""
    if jax.process_index() != 0:
        return
    packages = ("gptfl-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "argv": sys.orig_argv,
        "config": config,
        "versions": versions,
        "platform": platform.platform(),
        "processes": jax.process_count(),
        "devices": [f"{device.platform}:{device.id}" for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
    }
    write_json(pathlib.Path(folder) / "run.json", record)
