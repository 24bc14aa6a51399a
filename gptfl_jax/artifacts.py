"""What the stages exchange on disk, written so that every kill is survivable.

A file appears whole or not at all (temporary name in the same folder, fsync, rename).
Files that grow (`manifest.jsonl`, `metrics.jsonl`) hold a line a record; a line that a
kill has torn is dropped by the next reader and cut off by the next writer. A full disk,
a read-only folder and a folder in use raise `UserError`s that name the folder.
"""

import contextlib
import datetime
import errno
import fcntl
import functools
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from gptfl_jax.configuration import UserError

PathLike = str | os.PathLike[str]

# What a kill in the middle of a write leaves behind: `.name.<process id>`.
_LEFTOVER = re.compile(r"\..+\.\d+")


class WriteError(UserError):
    """A file could not be written: disk full, or no right to write."""


class WorkdirInUse(UserError):
    """Another run is writing to this folder."""


class ManifestError(UserError):
    """A line of manifest.jsonl that no run of ours wrote."""


class CheckpointMismatch(UserError):
    """A checkpoint of another model or run than the one it is read for."""


# Whole files ------------------------------------------------------------------------


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file so that a kill leaves the old file or the new one, never a part."""
    write_files({path: data})


def write_text(path: PathLike, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
    """`write_bytes` of indented JSON; numpy scalars, tuples and paths are converted."""
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def write_files(files: Mapping[PathLike, bytes]) -> None:
    """`write_bytes` of many files, as a batch of images; folders are made as needed.

    Each file appears whole. They are flushed to disk side by side, which takes a
    fraction of the time of one after the other.
    """
    named = {pathlib.Path(path): data for path, data in files.items()}
    folders = dict.fromkeys(path.parent for path in named)
    # The form of these names is that of _LEFTOVER.
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in named}

    def write(path: pathlib.Path) -> None:
        with _explained(path.parent), open(temporary[path], "wb") as file:
            file.write(named[path])
            file.flush()
            os.fsync(file.fileno())

    for folder in folders:
        make_folder(folder)
    try:
        if len(named) == 1:
            write(*named)
        else:
            with ThreadPoolExecutor(min(16, len(named) or 1)) as pool:
                list(pool.map(write, named))
        for path in named:
            with _explained(path.parent):
                os.replace(temporary[path], path)
    except BaseException:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    for folder in folders:
        _flush_folder(folder)


def remove_leftovers(folder: PathLike) -> None:
    """Remove what kills in the middle of a write have left in a folder.

    Not in those below it. Only for who holds the folder's lock: another run's write may
    be under way.
    """
    if not os.path.isdir(folder):
        return
    with _explained(folder), os.scandir(folder) as entries:
        leftovers = [each.path for each in entries if _LEFTOVER.fullmatch(each.name)]
        for path in leftovers:
            os.unlink(path)


def make_folder(folder: PathLike) -> pathlib.Path:
    """Make a folder and those above it.

    Raises:
        WriteError: no right to, no space, or a file has its name.
    """
    folder = pathlib.Path(folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _flush_folder(folder: pathlib.Path) -> None:
    """Make renames in a folder durable, where a folder can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _explained(folder: PathLike) -> Iterator[None]:
    """Turn the errors of a failed write into a `WriteError` that names the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        raise WriteError(f"cannot write to {os.fspath(folder)}: {reason}") from error


def _write_failure(error: BaseException) -> str | None:
    """What a user can do about a failed write; None if it is another error."""
    code = error.errno if isinstance(error, OSError) else None
    # tensorstore, below orbax, raises ValueErrors with the system's text in them.
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or any(
        os.strerror(each) in text for each in (errno.ENOSPC, errno.EDQUOT)
    ):
        return (
            "the disk is full. Free some space and start again: the run goes on "
            "from what was written"
        )
    if code in (errno.EROFS, errno.EACCES, errno.EPERM) or any(
        os.strerror(each) in text for each in (errno.EROFS, errno.EACCES)
    ):
        return (
            "it is read-only or belongs to someone else. Choose another --workdir, "
            "or change its permissions"
        )
    if code in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where a folder is needed. Choose another --workdir"
    if code == errno.EFBIG:
        return "a file would be larger than the system allows (ulimit -f)"
    if code in (errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
        return f"{os.strerror(code)}. Choose another --workdir"
    return None


def _plain(value: Any) -> Any:
    """The JSON form of a value: NaN and the infinities, which JSON lacks, are null."""
    if isinstance(value, ConfigDict):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str | int | float | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


# One run at a time ------------------------------------------------------------------


@contextlib.contextmanager
def lock(folder: PathLike) -> Iterator[None]:
    """Hold a folder for this run; a second run is refused.

    The kernel drops the lock when the process ends, however it ends, so a kill leaves
    nothing to clean up. Of several processes of one run the first takes the lock, and
    all of them learn whether it got it, and whether they see the same folder.

    Raises:
        WorkdirInUse: another run holds the folder.
        WriteError: the folder cannot be written to.
        UserError: it is not the same folder for all processes.
    """
    refusal: UserError | None = None
    descriptor = None
    if jax.process_index() == 0:
        try:
            descriptor = _take_lock(pathlib.Path(folder))
        except UserError as error:
            refusal = error
    if jax.process_count() > 1:
        refused = multihost_utils.broadcast_one_to_all(np.bool_(refusal is not None))
        if refused and refusal is None:
            refusal = WorkdirInUse(f"{folder} is not free: process 0 says why")
        elif not refused:
            refusal = _not_shared(pathlib.Path(folder))
    try:
        if refusal is not None:
            raise refusal
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take_lock(folder: pathlib.Path) -> int:
    make_folder(folder)
    with _explained(folder):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise WorkdirInUse(
            f"{folder} is in use by another run ({holder or 'unknown'}). "
            "Wait for it to end, or choose another --workdir"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise WriteError(
            f"cannot lock {folder}: {error.strerror}. Choose another --workdir"
        ) from error
    # Only for the message above: the lock is the kernel's, not this text.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        holder = f"process {os.getpid()} on {platform.node()} since {now}\n"
        os.write(descriptor, holder.encode())
        os.fsync(descriptor)
    return descriptor


def _not_shared(folder: pathlib.Path) -> UserError | None:
    """The error where a process does not find the lock that the first has taken."""

    def seen() -> int:
        try:
            return zlib.crc32((folder / ".lock").read_bytes())
        except OSError:
            return 0

    expected = int(multihost_utils.broadcast_one_to_all(np.uint32(seen())))
    # Network file systems may show a new file late.
    patience = 20
    while seen() != expected and patience:
        time.sleep(0.5)
        patience -= 1
    same = multihost_utils.process_allgather(np.bool_(seen() == expected))
    if same.all():
        return None
    return UserError(
        f"process {np.argmin(same)} does not see what process 0 writes to {folder}: "
        "take a --workdir that all hosts share, as a folder on NFS"
    )


# Lines that grow --------------------------------------------------------------------


def _whole_lines(path: pathlib.Path) -> list[str]:
    """The complete lines of a file; a last one without its newline is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; what is torn or no object is left out."""
    records = []
    for line in _whole_lines(pathlib.Path(path)):
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def append_records(path: PathLike, records: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON objects to a file, a line each, durably."""
    lines = [json.dumps(_plain(record), ensure_ascii=False) for record in records]
    _append_lines(pathlib.Path(path), lines)


def _append_lines(path: pathlib.Path, lines: Sequence[str]) -> None:
    """Append whole lines, durably, after cutting off a torn one."""
    make_folder(path.parent)
    data = "".join(line + "\n" for line in lines).encode()
    with _explained(path.parent):
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


class Sample(NamedTuple):
    """One line of `manifest.jsonl`: a synthetic sample and how it was made.

    file: path relative to the folder of the manifest, with forward slashes.
    label: class name.
    prompt: what the generator was given.
    seed: seed of the sample's own key.
    guidance: classifier-free guidance scale; None for generators without one.
    model: the generator.
    speaker: number of the speaker vector; None, and not written, where none speaks.
    snr_db: signal-to-noise ratio of white noise added; None, and not written, where
        none was.
    """

    file: str
    label: str
    prompt: str
    seed: int
    guidance: float | None
    model: str
    speaker: int | None = None
    snr_db: float | None = None


def read_manifest(folder: PathLike) -> list[Sample]:
    """Read `manifest.jsonl` of a folder of synthetic samples.

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
    for number, line in enumerate(_whole_lines(path), start=1):
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
                f"{path} line {number}: the file {sample.file!r} is outside {folder}. "
                "Remove the line, or make the samples again"
            )
        samples[sample.file] = sample
    return list(samples.values())


def _is_inside(root: pathlib.Path, path: str) -> bool:
    """Whether a path below `root` stays there, by its parts and where links lead."""
    below = pathlib.PurePosixPath(path)
    if below.is_absolute() or ".." in below.parts:
        return False
    return (root / below).resolve().is_relative_to(root)


def _parse_sample(line: str, where: str) -> Sample:
    try:
        record = json.loads(line)
        sample = Sample(**record)
    except (ValueError, TypeError) as error:
        raise ManifestError(
            f"{where}: not a sample with {', '.join(Sample._fields)} ({error}). "
            "Remove the line, or make the samples again"
        ) from None
    texts = (sample.file, sample.label, sample.prompt, sample.model)
    whole = isinstance(sample.seed, int) and not isinstance(sample.seed, bool)
    number = all(
        value is None or isinstance(value, int | float)
        for value in (sample.guidance, sample.snr_db)
    )
    whole &= sample.speaker is None or type(sample.speaker) is int
    if not (all(isinstance(text, str) for text in texts) and whole and number):
        raise ManifestError(f"{where}: a field has the wrong type: {line}")
    return sample


def append_samples(folder: PathLike, samples: Sequence[Sample]) -> None:
    """Append samples to `manifest.jsonl`: call it once their files are written.

    A kill leaves whole lines and at most one torn one, which readers leave out and the
    next call removes.
    """
    lines = _sample_lines(samples)
    if lines:
        _append_lines(pathlib.Path(folder) / "manifest.jsonl", lines)


def write_manifest(folder: PathLike, samples: Sequence[Sample]) -> None:
    """Make `manifest.jsonl` hold exactly these samples, in this order.

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
        for name in ("speaker", "snr_db"):
            if record[name] is None:
                del record[name]
        lines.append(json.dumps(_plain(record)))
    return lines


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
        text = "".join(json.dumps(_plain(line)) + "\n" for line in kept)
        write_text(self.path, text)

    def write(self, step: int, **scalars: Any) -> None:
        """Append one line. Arrays without axes count as numbers; NaN becomes null."""
        if self._writes:
            line = json.dumps(_plain({"step": int(step), **scalars}))
            _append_lines(self.path, [line])


def read_metrics(path: PathLike) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; null is read as NaN. Torn lines are left out."""
    path = pathlib.Path(path)
    records = []
    for number, line in enumerate(_whole_lines(path), start=1):
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


# Checkpoints ------------------------------------------------------------------------


class Checkpoints:
    """Checkpoints of a run in one folder, over orbax, written in the background.

    Any pytree can be saved: jax arrays (sharded or not), numpy arrays, Python numbers,
    typed PRNG keys (as their data). Leaves are stored under their path, so a checkpoint
    opens with plain orbax too, and survives a renamed NamedTuple.

    In a run of several processes all of them call every method; replicated arrays are
    written by the first process, sharded ones by those that hold them.

    Args:
        folder: where they go, `<folder>/<step>`.
        identity: what makes a checkpoint this run's: model name, options, class names.
            It is stored beside the checkpoints, and compared when they are opened.
        keep: how many of the last ones to keep.
        best: the metric whose largest value marks the best one, which is kept as well.
        read_only: open an existing folder without touching it.
        remedy: what to do about checkpoints of another run, beside other folders.

    Raises:
        CheckpointMismatch: the folder holds checkpoints of another identity.
        WriteError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: PathLike,
        identity: Mapping[str, Any] | None = None,
        keep: int = 2,
        best: str | None = None,
        read_only: bool = False,
        remedy: str = "",
    ):
        self._remedy = f"{remedy}, choose" if remedy else "Choose"
        self.folder = pathlib.Path(folder).absolute()
        if read_only and not self.folder.is_dir():
            raise UserError(f"{folder} is missing: there are no checkpoints to read")
        record = self._read_record()
        self._best = record["best"] if record is not None and read_only else best
        if read_only:
            options = ocp.CheckpointManagerOptions(
                read_only=True,
                create=False,
                save_interval_steps=0,
                best_fn=None if self._best is None else _metric(self._best),
            )
        else:
            make_folder(self.folder)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(keep, best),
                best_fn=None if best is None else _metric(best),
                cleanup_tmp_directories=True,
            )
        with _explained(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers=ocp.PyTreeCheckpointHandler(),
            )
        try:
            # With no checkpoint yet there is nothing that could be of another run.
            if record is not None and identity is not None and self.steps():
                self._check_identity(_plain(identity), record["identity"])
            if identity is None:
                identity = {} if record is None else record["identity"]
            if not read_only and jax.process_index() == 0:
                write_json(self._record, {"identity": identity, "best": best})
        except UserError:
            self._manager.close()
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except Exception:
            # What went wrong first is the error to show; this is often its echo.
            if kind is None:
                raise

    @property
    def _record(self) -> pathlib.Path:
        return self.folder / "identity.json"

    def _read_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads(self._record.read_text())
            return {"identity": record["identity"], "best": record["best"]}
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{self._record} is damaged: delete {self.folder} to start anew"
            ) from None

    def _check_identity(self, ours: Any, theirs: Any) -> None:
        ours, theirs = _dotted(ours), _dotted(theirs)
        # Compared as text, in which 1, 1.0 and True are different things.
        theirs = {name: json.dumps(value) for name, value in theirs.items()}
        ours = {name: json.dumps(value) for name, value in ours.items()}
        if differing := _differences(theirs, ours):
            raise CheckpointMismatch(
                f"the checkpoints in {self.folder} are of another run: "
                + "; ".join(differing)
                + f". {self._remedy} another --workdir, or delete that folder"
            )

    def save(
        self, step: int, tree: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save a tree as the checkpoint of a step, in the background.

        The tree is copied before the call returns, so its buffers may be donated. A
        step that is saved already is left as it is. An error of the save before this
        one is raised here, or by `wait`.

        Raises:
            WriteError: the disk is full or read-only. The last good checkpoint stays.
        """
        if step in self._manager.all_steps():
            return
        if self._best is not None and self._best not in (metrics or {}):
            raise ValueError(f"save(metrics=...) lacks {self._best!r}, the best metric")
        saved = _nested({path: _storable(leaf) for path, leaf in _leaves_of(tree)})
        scalars = {name: float(value) for name, value in (metrics or {}).items()}
        with _explained(self.folder):
            self._manager.save(
                step,
                args=ocp.args.PyTreeSave(saved),
                metrics=scalars or None,
                # Or orbax passes over a step before the last one without a word.
                force=True,
            )

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The last step there is a checkpoint of; None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step with the largest `best` metric; the last one where there is none."""
        if self._best is None:
            return self.latest_step()
        metric = _metric(self._best)
        scored = [
            (metric(metrics), step)
            for step in self.steps()
            if (metrics := self._manager.metrics(step)) and self._best in metrics
        ]
        return max(scored)[1] if scored else self.latest_step()

    def restore(self, template: Any, step: int | str | None = None) -> Any:
        """Read a checkpoint.

        Args:
            template: a tree like the one wanted. Its leaves say how each is restored:
                a numpy array or a Python number as itself, a `jax.Array` with the same
                sharding, a typed key as a key, a `jax.ShapeDtypeStruct` on its sharding
                or the default device. It may have fewer top-level entries than what was
                saved, as only `{"variables": ...}` of a training state.
            step: which one; "best", or None for the last.

        Raises:
            CheckpointMismatch: a leaf is missing, left over, or of another shape or
                dtype; the message says which.
            UserError: there is no such checkpoint.
        """
        step = self._resolve(step)
        wanted = dict(_leaves_of(template))
        entries = {path[0] for path, _ in _leaves_of(template, entries=True)}
        with self._readable(step):
            stored = dict(_leaves_of(self._manager.item_metadata(step).tree))
        self._check_leaves(
            step,
            wanted,
            {path: leaf for path, leaf in stored.items() if path[0] in entries},
        )
        with self._readable(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.PyTreeRestore(
                    item=_nested(dict.fromkeys(wanted, 0)),
                    restore_args=_nested(
                        {path: _restore_args(leaf) for path, leaf in wanted.items()}
                    ),
                    partial_restore=True,
                ),
            )
        values = dict(_leaves_of(restored))
        leaves = [_like(leaf, values[path]) for path, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Say which folder to remove where a checkpoint has lost some of its files."""
        try:
            yield
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"checkpoint {step} in {self.folder} cannot be read ({reason}). "
                f"Delete {self.folder / str(step)} to go on from the one before"
            ) from error

    def _resolve(self, step: int | str | None) -> int:
        if step == "best":
            found = self.best_step()
        elif step is None:
            found = self.latest_step()
        else:
            found = step if step in self.steps() else None
        if found is None:
            named = "checkpoint" if step is None else f"checkpoint {step}"
            raise UserError(f"{self.folder} holds no {named}: train first")
        return int(found)

    def _check_leaves(
        self, step: int, wanted: dict[tuple, Any], stored: dict[tuple, Any]
    ) -> None:
        there = {"/".join(path): _describe(leaf) for path, leaf in stored.items()}
        here = {"/".join(path): _describe(leaf) for path, leaf in wanted.items()}
        if differing := _differences(there, here):
            more = len(differing) - 3
            raise CheckpointMismatch(
                f"checkpoint {step} in {self.folder} is of another model: "
                + "; ".join(differing[:3])
                + (f"; and {more} more" if more > 0 else "")
            )

    def wait(self) -> None:
        """Wait until everything is on disk.

        Raises:
            WriteError: the disk is full or read-only. The last good checkpoint stays.
        """
        with _explained(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the folder."""
        with _explained(self.folder):
            self._manager.close()


def restore_checkpoint(
    folder: PathLike,
    template: Any,
    step: int | str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Any:
    """Read one checkpoint of a folder without touching it: `Checkpoints.restore`."""
    with Checkpoints(folder, identity, read_only=True) as checkpoints:
        return checkpoints.restore(template, step)


def _metric(name: str) -> Any:
    def get(metrics: Mapping[str, float]) -> float:
        value = float(metrics[name])
        return -math.inf if math.isnan(value) else value

    return get


def _preservation(
    keep: int, best: str | None
) -> checkpoint_managers.AnyPreservationPolicy:
    policies = [checkpoint_managers.LatestN(keep)]
    if best is not None:
        # A folder whose removal a kill cut short has no metrics: remove it again.
        policies.append(
            checkpoint_managers.BestN(
                get_metric_fn=_metric(best),
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    return checkpoint_managers.AnyPreservationPolicy(policies)


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """What is not the same in two descriptions, name by name."""
    return [
        f"{name} is {there.get(name, 'absent')} there and "
        f"{here.get(name, 'absent')} here"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]


def _leaves_of(
    tree: Any, entries: bool = False
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of a tree with their paths, as names; or its top-level entries."""
    is_leaf = (lambda node: node is not tree) if entries else None
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]:
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        yield tuple(names) or ("value",), leaf


def _nested(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def _dotted(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, entry in value.items():
        leaves |= _dotted(entry, f"{name}.{key}" if name else key)
    return leaves


def _is_key(leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _storable(leaf: Any) -> np.ndarray | jax.Array:
    """A copy of a leaf in the form that is written.

    What every process holds in full becomes a numpy array, which orbax writes once. A
    copy, because on a CPU a numpy view of a jax array shares its buffer, and the next
    training step may overwrite that while the save still reads.
    """
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array):
        if leaf.is_fully_addressable:
            return np.array(leaf)
        if leaf.is_fully_replicated:
            return np.array(leaf.addressable_data(0))
        return jax.numpy.copy(leaf)
    return np.array(leaf)


def _data_of(leaf: Any) -> Any:
    """The leaf, or what a typed key is stored as."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf)
    return jax.eval_shape(jax.random.key_data, leaf)


def _describe(leaf: Any) -> str:
    leaf = _data_of(leaf)
    if isinstance(leaf, bool | int | float):
        leaf = np.asarray(leaf)
    shape = ",".join(map(str, leaf.shape))
    return f"{np.dtype(leaf.dtype).name}[{shape}]"


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(_data_of(leaf), "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)


def _like(leaf: Any, value: Any) -> Any:
    """What was restored, in the form of the template's leaf."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(value, impl=str(_key_impl(leaf)))
    if isinstance(leaf, bool | int | float):
        return type(leaf)(value)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.numpy.asarray(value)
    return value


def _key_impl(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.random.key_impl(leaf)
    return leaf.dtype._impl.name


# Records ----------------------------------------------------------------------------


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
    root = pathlib.Path(__file__).parent.parent
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


def write_run_record(folder: PathLike, config: ConfigDict) -> None:
    """Write `run.json`: command, config, versions, commit, devices and date."""
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
        "commit": _commit(),
        "platform": platform.platform(),
        "processes": jax.process_count(),
        "devices": [f"{device.platform}:{device.id}" for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
    }
    write_json(pathlib.Path(folder) / "run.json", record)
