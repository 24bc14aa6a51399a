"""The folder that a generator program fills: what is there, what is missing, writing.

The samples and their order are planned before anything is made, so the folder that a
run ends with depends on the plan alone. A sample's file is written whole before its
manifest line, and a sample counts as made when both are there and the file is the one
that the line has the digest of: whenever a run is killed, the next one makes what has
no line yet, over whatever file was left, and what has changed since.
"""

import collections
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import jax
import numpy as np
from jaxtyping import PyTree
from tqdm.auto import tqdm

from gptfl_jax import artifacts
from gptfl_jax.artifacts import Sample
from gptfl_jax.devices import wait_for_processes
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say

_SETTINGS = "settings.json"
# Names in the folder that no class folder may take.
_RESERVED = ("manifest.jsonl", "preview.png", "run.json", _SETTINGS)
# Batches being written while the next one is made.
_BATCHES_AHEAD = 2


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder name for each class: letters, digits, `.`, `-` and `_` alone.

    Everything else becomes `_`. A name that is taken, also on a file system that
    ignores case, gets the number of its class appended.
    """
    names: dict[str, str] = {}
    taken = set(_RESERVED)
    for label, class_name in enumerate(classes):
        safe = re.sub(r"[^\w.-]+", "_", class_name).strip(".").lstrip("-")
        # A file's name is this one with a number, and has 255 bytes at most.
        name = safe.encode()[:80].decode(errors="ignore") or "class"
        if name.casefold() in taken:
            name = f"{name}-{label}"
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        names[class_name] = name
    return names


class SampleFolder:
    """A folder of samples between plan and completion.

    With several processes all of them open the folder, which they share, and each
    makes samples of its own; the first one puts the manifest in order.

    Args:
        folder: `<workdir>/synthetic`, locked by the caller.
        planned: all samples the folder shall hold, in the order of the manifest.
        settings: what a sample's content depends on, by a name users know. A folder
            made with another value of any of them is refused; a value that starts with
            "sha256:" is not shown.
        complete: whether a file is whole, as far as that can be seen at little cost.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        planned: Sequence[Sample],
        settings: Mapping[str, Any],
        complete: Callable[[pathlib.Path], bool],
    ):
        self.folder = folder
        self.planned = planned
        self._settings = json.loads(json.dumps(dict(settings)))
        self._complete = complete

    def open(self) -> set[str]:
        """Checks and tidies what earlier runs left.

        Returns:
            the files that are made already.

        Raises:
            UserError: the folder holds samples that the plan does not, or that were
                made with other settings; or a folder or record of it is a link.
        """
        self._refuse_links()
        artifacts.make_folder(self.folder)
        lines = self._check()
        if jax.process_index() == 0:
            artifacts.write_json(self.folder / _SETTINGS, self._settings)
            self._remove_leftovers()
            self._put_in_order(self._as_made(lines))
        wait_for_processes("folder opened")
        return {sample.file for sample in artifacts.read_manifest(self.folder)}

    def close(self) -> None:
        """Puts the manifest in its final order, once every process has made its part.

        Raises:
            UserError: a sample is missing.
        """
        wait_for_processes("samples made")
        if jax.process_index() == 0:
            made = {each.file: each for each in artifacts.read_manifest(self.folder)}
            self._put_in_order(made)
            missing = [s.file for s in self.planned if s.file not in made]
            if missing:
                raise UserError(
                    f"{self.folder}: {len(missing):,} samples are missing (the first: "
                    f"{missing[0]}); start the same command again to make them. With "
                    "several processes --workdir must be a folder that all share"
                )
        wait_for_processes("folder closed")

    def _refuse_links(self) -> None:
        folders = {sample.file.rpartition("/")[0] for sample in self.planned}
        for name in (*_RESERVED, *sorted(folders)):
            artifacts.require_no_link(self.folder / name, self.folder.parent)

    def _check(self) -> list[Sample]:
        """The lines that are there; refuses what is not of this plan."""
        lines = artifacts.read_manifest(self.folder)
        if not lines:
            return []  # a run that made nothing binds no later one
        earlier = self._earlier_settings()
        remedy = (
            f"delete {self.folder} to make all samples anew, "
            "or choose another --workdir"
        )
        if earlier is None:
            raise UserError(
                f"{self.folder} holds samples, but not the {_SETTINGS} that says how "
                f"they were made; {remedy}"
            )
        for name, value in self._settings.items():
            before = earlier.get(name, value)
            if before == value:
                continue
            hidden = isinstance(value, str) and value.startswith("sha256:")
            differs = (
                f"was made with another {name}"
                if hidden
                else f"was made with {name} = {before!r}, now it is {value!r}"
            )
            raise UserError(
                f"{self.folder} {differs}, and samples of both would mix: put it back, "
                f"{remedy}"
            )
        planned = {sample.file: sample for sample in self.planned}
        foreign = [line.file for line in lines if line.file not in planned]
        if foreign:
            raise UserError(
                f"{self.folder} holds {len(foreign):,} samples more than are asked for "
                f"(the first: {foreign[0]}); ask for at least as many samples and "
                f"classes as it holds, {remedy}"
            )
        for line in lines:
            if _plan_of(line) != _plan_of(planned[line.file]):
                raise UserError(
                    f"{self.folder}: the manifest has {line}, but this config plans "
                    f"{planned[line.file]}; {remedy}"
                )
        # Settings of classes that are not in this plan (any more) stay on record.
        self._settings = {**earlier, **self._settings}
        return lines

    def _as_made(self, lines: Sequence[Sample]) -> dict[str, Sample]:
        """The lines whose files are as they were made; says how many are not.

        Every file is read, in threads. On two cores that others used as well, 75,750
        files of 2.5 kB took 6 s, and those of 450 kB 0.45 ms each: 34 s for as many,
        where the disk gives 1 GB/s.
        """

        def is_as_made(line: Sample) -> bool:
            path = self.folder / line.file
            return self._complete(path) and not artifacts.is_changed(path, line.sha256)

        bar = tqdm(
            total=len(lines), desc="checked", unit=" files", delay=2.0, disable=None
        )
        found = {}
        with bar, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for line, right in zip(lines, pool.map(is_as_made, lines), strict=True):
                bar.update()
                if right:
                    found[line.file] = line
        wrong = [line.file for line in lines if line.file not in found]
        if wrong:
            say(
                f"{self.folder}: {len(wrong):,} samples are gone or not as they were "
                f"made (the first: {wrong[0]}); they are made again"
            )
        return found

    def _earlier_settings(self) -> dict[str, Any] | None:
        path = self.folder / _SETTINGS
        remedy = f"delete {self.folder} to make all samples anew"
        try:
            return artifacts.read_json(path, {}, remedy)
        except FileNotFoundError:
            return None

    def _remove_leftovers(self) -> None:
        names: dict[str, set[str]] = {"": set(_RESERVED)}
        for sample in self.planned:
            parent, _, name = sample.file.rpartition("/")
            names.setdefault(parent, set()).add(name)
        for parent, ours in names.items():
            artifacts.remove_leftovers(self.folder / parent, ours)

    def _put_in_order(self, made: Mapping[str, Sample]) -> None:
        samples = []
        for each in self.planned:
            if line := made.get(each.file):
                # Earlier versions did not look.
                licence = line.licence or each.licence
                samples.append(line._replace(licence=licence))
        artifacts.write_manifest(self.folder, samples)


def _plan_of(line: Sample) -> Sample:
    """A line without what a run finds out, which may differ from run to run."""
    return line._replace(sha256=None, licence=None)


class SampleWriter:
    """Writes batches in the background while the next ones are made.

    A context manager: leaving it waits until all is written; leaving it by an
    exception drops what is not.

    Args:
        folder: of the manifest.
        encode: the file content of one sample, from its row, called in threads.
        on_written: called with the samples of each batch once their files and lines
            are written, in the order the batches were put.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        encode: Callable[[PyTree[np.ndarray]], bytes],
        on_written: Callable[[Sequence[Sample]], None],
    ):
        self._folder = folder
        self._encode = encode
        self._on_written = on_written
        # One thread takes the batches in turn, which keeps the lines in order.
        self._batches = ThreadPoolExecutor(1)
        self._encoders = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
        self._pending: collections.deque[Future] = collections.deque()

    def put(
        self,
        samples: Sequence[Sample],
        rows: Sequence[int],
        batch: PyTree[jax.Array | np.ndarray],
    ) -> None:
        """Takes row `rows[i]` of the batch's arrays as the content of `samples[i]`.

        Waits while too much is still to be written. `batch` may still be computed.

        Raises:
            WriteError: an earlier batch could not be written.
        """
        while len(self._pending) >= _BATCHES_AHEAD:
            self._pending.popleft().result()
        self._pending.append(self._batches.submit(self._write, samples, rows, batch))

    def wait(self) -> None:
        """Waits until all batches are written.

        Raises:
            WriteError: one could not be.
        """
        while self._pending:
            self._pending.popleft().result()

    def _write(
        self,
        samples: Sequence[Sample],
        rows: Sequence[int],
        batch: PyTree[jax.Array | np.ndarray],
    ) -> None:
        values = jax.device_get(batch)
        contents: Iterable[bytes] = self._encoders.map(
            self._encode,
            [jax.tree.map(lambda leaf, row=row: leaf[row], values) for row in rows],
        )
        files, lines = {}, []
        for sample, content in zip(samples, contents, strict=True):
            files[self._folder / sample.file] = content
            lines.append(sample._replace(sha256=artifacts.digest(content)))
        artifacts.write_files(files)
        artifacts.append_samples(self._folder, lines)
        self._on_written(samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._batches.shutdown(cancel_futures=True)
            self._encoders.shutdown()
