"""Checkpoints of a run, over orbax."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from gptfl_jax.artifacts.files import (
    PathLike,
    explained,
    make_folder,
    plain,
    write_json,
)
from gptfl_jax.configuration import UserError


class CheckpointMismatch(UserError):
    """A checkpoint of another model or run than the one it is read for."""


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
    ):
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
        with explained(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=options,
                item_handlers=ocp.PyTreeCheckpointHandler(),
            )
        try:
            # With no checkpoint yet there is nothing that could be of another run.
            if record is not None and identity is not None and self.steps():
                self._check_identity(plain(identity), record["identity"])
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
                + ". Choose another --workdir, or delete that folder"
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
        with explained(self.folder):
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
        with explained(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the folder."""
        with explained(self.folder):
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
