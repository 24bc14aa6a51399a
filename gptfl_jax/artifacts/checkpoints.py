"""Checkpoints of a run, over orbax."""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from gptfl_jax.artifacts import digests
from gptfl_jax.artifacts.checked_json import read_json
from gptfl_jax.artifacts.files import (
    PathLike,
    explained,
    flush_folder,
    make_folder,
    plain,
    remove_leftovers,
    require_no_link,
    write_json,
)
from gptfl_jax.artifacts.locking import require_held
from gptfl_jax.errors import UserError


class CheckpointMismatch(UserError):
    """A checkpoint of another model or run than the one it is read for."""


# What a kill leaves of a step that was being written or deleted, by us or, in earlier
# versions, by orbax.
_WRITING, _DELETED = ".gptfl-writing", ".gptfl-deleted"
_LEFTOVER = re.compile(
    rf"\.\d+({_WRITING}(\.orbax-checkpoint-tmp.*)?|{_DELETED})"
    r"|\d+\.orbax-checkpoint-tmp.*"
)
_STEP = re.compile(r"0|[1-9]\d*")
_RECORD = {"identity": {}, "best": ("null", "text"), "digests?": "text"}
_METRICS = "metrics/metrics"


class Checkpoints:
    """Checkpoints of a run in one folder, over orbax, written in the background.

    Any pytree can be saved: jax arrays (sharded or not), numpy arrays, Python numbers,
    typed PRNG keys (as their data). Leaves are stored under their path, so a checkpoint
    opens with plain orbax too, and survives a renamed NamedTuple.

    A step is there when its folder has its name, which it gets once all is written,
    digests of its files last. A step is checked before it is taken: a damaged one is
    named in a line, and the one before it taken. On two cores that others used as well,
    a checkpoint of 0.95 GB was checked in 0.9 s, then restored in 4.4 s; of the 16 s of
    saving it, in the background, the digests were 0.8.

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
        translate: an identity that an earlier version may have stored -> as it would
            be now.

    Raises:
        CheckpointMismatch: the folder holds checkpoints of another identity.
        WriteError: the folder cannot be written to.
        UserError: the folder has lost its record of their identity.
    """

    def __init__(
        self,
        folder: PathLike,
        identity: Mapping[str, Any] | None = None,
        keep: int = 2,
        best: str | None = None,
        read_only: bool = False,
        remedy: str = "",
        translate: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ):
        self._remedy = f"{remedy}, choose" if remedy else "Choose"
        self.folder = pathlib.Path(folder).absolute()
        self._keep = keep
        if read_only and not self.folder.is_dir():
            raise UserError(f"{folder} is missing: there are no checkpoints to read")
        if not read_only:
            require_no_link(self.folder, self.folder.parent)
            make_folder(self.folder)
        record = self._read_record()
        self._best = record["best"] if record is not None and read_only else best
        self._has_digests = record is None or "digests" in record
        steps = [step for step in self._find_steps() if not self._is_torn(step)]
        if record is None and steps:
            raise UserError(
                f"{self._record} is missing, which says what run the checkpoints "
                "beside it are of: put it back from a copy, or delete "
                f"{self.folder} to start anew"
            )
        # With no checkpoint yet there is nothing that could be of another run.
        if record is not None and identity is not None and steps:
            theirs = record["identity"]
            theirs = theirs if translate is None else translate(theirs)
            self._check_identity(plain(identity), plain(theirs))
        if identity is None:
            identity = {} if record is None else record["identity"]
        if not read_only and jax.process_index() == 0:
            self._remove_leftovers()
            if not self._has_digests:
                self._adopt()
            content = {"identity": identity, "best": best, "digests": "sha256"}
            write_json(self._record, content)
        self._has_digests |= not read_only
        # What is wrong with the steps that have been checked; empty: nothing.
        self._faults: dict[int, str] = {}
        self._metrics = {step: self._read_metrics(step) for step in steps}
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                default=ocp.PyTreeCheckpointHandler(),
                metrics=ocp.JsonCheckpointHandler(filename="metrics"),
            )
        )
        self._thread = ThreadPoolExecutor(1)
        self._being_saved: Future | None = None

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
            remedy = f"delete {self.folder} to start anew"
            return read_json(self._record, _RECORD, remedy)
        except FileNotFoundError:
            return None

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

    def _find_steps(self) -> list[int]:
        names = (path.name for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(name) for name in names if _STEP.fullmatch(name))

    def _remove_leftovers(self) -> None:
        remove_leftovers(self.folder, [self._record.name])
        with explained(self.folder):
            for path in list(self.folder.iterdir()):
                if _LEFTOVER.fullmatch(path.name) and not path.is_symlink():
                    shutil.rmtree(path)

    def _is_torn(self, step: int) -> bool:
        """Whether a kill stopped an earlier version while it deleted a step.

        One that was deleted by this version has another name.
        """
        needed = ("_CHECKPOINT_METADATA", "default/_METADATA", "default/manifest.ocdbt")
        folder = self.folder / str(step)
        return not self._has_digests and not all(
            (folder / name).exists() for name in needed
        )

    def _adopt(self) -> None:
        """Gives the steps of an earlier version the digests that they lack."""
        for step in self._find_steps():
            if self._is_torn(step):
                self._delete(step)
            else:
                digests.write(self.folder / str(step))

    def _read_metrics(self, step: int) -> dict[str, float] | None:
        """The metrics of a step; None where it has none, or they are damaged."""
        folder = self.folder / str(step)
        try:
            if self._has_digests:
                written = digests.read(folder)
                if _METRICS not in written:
                    return None
                fault = digests.fault(folder, {_METRICS: written[_METRICS]})
                if fault:
                    raise ValueError(fault)
            metrics = json.loads((folder / _METRICS).read_text())
            return {name: float(value) for name, value in metrics.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None  # what is wrong will be found when the step is checked

    def save(
        self, step: int, tree: Any, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves a tree as the checkpoint of a step, in the background.

        The tree is copied before the call returns, so its buffers may be donated. A
        step that is saved already is left as it is. An error of the save before this
        one is raised here, or by `wait`.

        Raises:
            WriteError: the disk is full or read-only. The last good checkpoint stays.
            WorkdirInUse: the lock that keeps other runs away was deleted.
        """
        if step in self.steps():
            return
        if self._best is not None and self._best not in (metrics or {}):
            raise ValueError(f"save(metrics=...) lacks {self._best!r}, the best metric")
        saved = _nested({path: _storable(leaf) for path, leaf in _leaves_of(tree)})
        scalars = {name: float(value) for name, value in (metrics or {}).items()}
        self.wait()
        require_held(self.folder)
        items = {"default": ocp.args.PyTreeSave(saved)}
        if scalars:
            items["metrics"] = ocp.args.JsonSave(scalars)
        part = self.folder / f".{step}{_WRITING}"
        with explained(self.folder):
            self._checkpointer.save(part, args=ocp.args.Composite(**items), force=True)
        self._faults[step] = ""
        self._metrics[step] = scalars or None
        gone = self._superfluous()
        for each in gone:
            self._metrics.pop(each)
        self._being_saved = self._thread.submit(self._finish, part, step, gone)

    def _finish(self, part: pathlib.Path, step: int, gone: Sequence[int]) -> None:
        """Waits until a step is written, gives it its name, and deletes old ones."""
        with explained(self.folder):
            self._checkpointer.wait_until_finished()
            if jax.process_index() != 0:
                return
            digests.write(part)
            require_held(self.folder)
            self._delete(step)
            os.replace(part, self.folder / str(step))
            flush_folder(self.folder)
            for each in gone:
                self._delete(each)

    def _delete(self, step: int) -> None:
        """Delete a step, so that a kill leaves all of it or nothing under its name."""
        path, gone = self.folder / str(step), self.folder / f".{step}{_DELETED}"
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            os.replace(path, gone)
            shutil.rmtree(gone)

    def _superfluous(self) -> list[int]:
        """The steps that are not to be kept: old, not the best one, or damaged."""
        whole = self.steps()
        kept = {*whole[-self._keep :], *self._by_metric()[:1]}
        return [step for step in self._metrics if step not in kept]

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order; not those found damaged."""
        return sorted(step for step in self._metrics if not self._faults.get(step))

    def latest_step(self) -> int | None:
        """The last step there is a whole checkpoint of; None if there is none at all.

        Raises:
            UserError: there are some, but none is whole.
        """
        return self._first_whole(self.steps()[::-1])

    def best_step(self) -> int | None:
        """The whole step with the largest `best` metric; the last one where none has.

        Raises:
            UserError: there are checkpoints, but none that is whole, or that has the
                metric.
        """
        if self._best is None:
            return self.latest_step()
        steps = self._by_metric()
        if self.steps() and not steps:
            self.latest_step()  # or that one is damaged, too
            raise UserError(
                f"no checkpoint in {self.folder} has the metric {self._best!r}, which "
                f"{self._record.name} says the best one is known by: put the file back "
                f"from a copy, or delete {self.folder} to start anew"
            )
        return self._first_whole(steps)

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics that a step was saved with."""
        return dict(self._metrics[step] or {})

    def _by_metric(self) -> list[int]:
        """The steps that have the `best` metric, best first, later ones of equals."""
        scored = []
        for step in self.steps():
            value = (self._metrics[step] or {}).get(self._best or "")
            if value is not None:
                scored.append((-math.inf if math.isnan(value) else value, step))
        return [step for _, step in sorted(scored, reverse=True)]

    def _first_whole(self, steps: Sequence[int]) -> int | None:
        """The first of the steps that is not damaged; says which are.

        So are, maybe, those whose metrics could not be read, the best one among them.
        """
        if not steps:
            return None
        self.wait()
        scored = self._by_metric() if self._best else steps
        unscored = [step for step in self.steps() if step not in scored]
        looked_at = [*unscored, *(step for step in steps if step not in unscored)]
        damaged = np.zeros(len(looked_at), bool)
        if jax.process_index() == 0:
            for index, step in enumerate(looked_at):
                damaged[index] = bool(self._fault(step))
                if index >= len(unscored) and not damaged[index]:
                    break
        if jax.process_count() > 1:
            damaged = multihost_utils.broadcast_one_to_all(damaged)
        # The first process has looked, and knows more than that.
        faults = {
            step: self._faults.get(step) or "damaged"
            for step, fault in zip(looked_at, damaged, strict=True)
            if fault
        }
        self._faults |= faults
        found = next((step for step in steps if step not in faults), None)
        if found is None:
            raise UserError(
                f"no checkpoint in {self.folder} is whole ("
                + "; ".join(f"{step}: {fault}" for step, fault in faults.items())
                + f"): put the files back from a copy, or delete {self.folder.parent} "
                "to start anew"
            )
        for step, fault in faults.items() if jax.process_index() == 0 else ():
            print(
                f"checkpoint {step} in {self.folder} is damaged ({fault}): "
                f"checkpoint {found} is taken",
                file=sys.stderr,
                flush=True,
            )
        return found

    def _fault(self, step: int) -> str:
        """What is wrong with the files of a step; empty: nothing."""
        if step not in self._faults:
            folder = self.folder / str(step)
            try:
                # A folder of an earlier version that was only opened for reading.
                known = digests.read(folder) if self._has_digests else {}
                self._faults[step] = digests.fault(folder, known)
            except ValueError as error:
                self._faults[step] = str(error)
        return self._faults[step]

    def restore(self, template: Any, step: int | str | None = None) -> Any:
        """Reads a checkpoint.

        Args:
            template: a tree like the one wanted. Its leaves say how each is restored:
                a numpy array or a Python number as itself, a `jax.Array` with the same
                sharding, a typed key as a key, a `jax.ShapeDtypeStruct` on its sharding
                or the default device. It may have fewer top-level entries than what was
                saved, as only `{"variables": ...}` of a training state.
            step: which one; "best", or None for the last. Of these the first whole one.

        Raises:
            CheckpointMismatch: a leaf is missing, left over, or of another shape or
                dtype; the message says which.
            UserError: there is no such checkpoint, or it is damaged.
        """
        step = self._resolve(step)
        wanted = dict(_leaves_of(template))
        entries = {path[0] for path, _ in _leaves_of(template, entries=True)}
        with self._readable(step):
            metadata = self._checkpointer.metadata(self.folder / str(step))
            stored = dict(_leaves_of(metadata.item_metadata["default"].tree))
        self._check_leaves(
            step,
            wanted,
            {path: leaf for path, leaf in stored.items() if path[0] in entries},
        )
        with self._readable(step):
            arguments = ocp.args.PyTreeRestore(
                item=_nested(dict.fromkeys(wanted, 0)),
                restore_args=_nested(
                    {path: _restore_args(leaf) for path, leaf in wanted.items()}
                ),
                partial_restore=True,
            )
            restored = self._checkpointer.restore(
                self.folder / str(step), args=ocp.args.Composite(default=arguments)
            )
        values = dict(_leaves_of(restored["default"]))
        leaves = [_like(leaf, values[path]) for path, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Says which folder to remove where a checkpoint cannot be read."""
        try:
            yield
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise self._unreadable(step, reason) from error

    def _unreadable(self, step: int, reason: str) -> UserError:
        return UserError(
            f"checkpoint {step} in {self.folder} cannot be read ({reason}). "
            f"Delete {self.folder / str(step)} to go on from the one before"
        )

    def _resolve(self, step: int | str | None) -> int:
        self.wait()
        if step == "best":
            found = self.best_step()
        elif step is None:
            found = self.latest_step()
        else:
            found = step if step in self._metrics else None
            if found is not None and (fault := self._fault(found)):
                raise self._unreadable(found, fault)
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
        """Waits until everything is on disk.

        Raises:
            WriteError: the disk is full or read-only. The last good checkpoint stays.
            WorkdirInUse: the lock that keeps other runs away was deleted.
        """
        being_saved, self._being_saved = self._being_saved, None
        if being_saved is not None:
            being_saved.result()

    def close(self) -> None:
        """Wait, then let go of the folder."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with explained(self.folder):
                self._checkpointer.close()


def restore_checkpoint(
    folder: PathLike,
    template: Any,
    step: int | str | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Any:
    """Reads one checkpoint of a folder without touching it: `Checkpoints.restore`."""
    with Checkpoints(folder, identity, read_only=True) as checkpoints:
        return checkpoints.restore(template, step)


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
