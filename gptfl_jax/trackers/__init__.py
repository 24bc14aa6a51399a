"""Trackers: where else the lines of metrics.jsonl go, as they are written.

`metrics.jsonl` stays the truth. A tracker shows the same scalars as curves, with the
config, the machine and pictures, in TensorBoard, Weights & Biases or trackio. One file
holds one tracker: a function of a `Run` that returns a `Tracker`, found by
`config.tracker`; what else it takes is `config.tracker_options`.

A tracker never ends a run. What it raises is said once, and the run goes on without it.
Of several processes the first has one, the others have none. A run that goes on after a
kill goes on in its tracker: `tracker.json` in its folder keeps the id.
"""

import contextlib
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from gptfl_jax import artifacts, choices, families, user_files
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say

FILE = "tracker.json"
"""In the folder of a run: the tracker that it has, and the id of the run there."""


class Run(NamedTuple):
    """What a tracker is told of a run when it starts.

    Attributes:
        id: of the run for the tracker, the same after a kill; of letters, digits, dots
            and dashes.
        name: to show.
        group: of the runs that belong together.
        folder: of the run, for files.
        config: fields of the config by their dotted names.
        machine: devices, versions and commit.
        done: the steps before a kill; None: the run is new to the tracker.
    """

    id: str
    name: str
    group: str
    folder: pathlib.Path
    config: dict[str, Any]
    machine: dict[str, Any]
    done: int | None


class Tracker:
    """What shows a run. Each method may raise what it likes."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows numbers of a step."""

    def picture(self, name: str, file: pathlib.Path) -> None:
        """Shows a PNG file."""

    def finish(self) -> None:
        """Ends the run there."""


class Tracking:
    """A tracker that fails quietly: one warning, and then nothing.

    Args:
        tracker: that shows the run; None: none does.
        name: of it, for the warning.
    """

    def __init__(self, tracker: Tracker | None = None, name: str = "none"):
        self._tracker, self._name = tracker, name

    def line(self, line: Mapping[str, Any]) -> None:
        """Shows a line of metrics.jsonl: what in it is a number."""
        scalars = {
            name: float(value)
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        }
        with self.guarded():
            if self._tracker is not None:
                self._tracker.log(int(line["step"]), scalars)

    def picture(self, name: str, file: pathlib.Path) -> None:
        """Shows a PNG file, where there is one."""
        with self.guarded():
            if self._tracker is not None and file.is_file():
                self._tracker.picture(name, file)

    def finish(self) -> None:
        """Ends the run in the tracker."""
        with self.guarded():
            if self._tracker is not None:
                self._tracker.finish()
        self._tracker = None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turns what is raised within into a warning, and the tracker off."""
        try:
            yield
        except Exception as error:  # whatever a tracker's library raises
            self._tracker = None
            say(
                f"tracker {self._name}: {user_files.brief(error)}; the run goes on "
                "without it, and metrics.jsonl has all lines"
            )

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


def check(config: ConfigDict) -> None:
    """Refuses a tracker whose package is missing, before work starts.

    Raises:
        UserError: it is, with what to install.
    """
    if jax.process_index() == 0:
        needs = getattr(choices.find(families.TRACKER, config.tracker), "needs", "")
        if needs:
            _require(needs, config.tracker)


def needs(package: str) -> Any:
    """Marks a tracker by the package that it imports, which is an extra of ours."""

    def mark(function: Any) -> Any:
        function.needs = package
        return function

    return mark


def _require(package: str, tracker: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise UserError(
            f"config.tracker = {tracker!r}: needs the package {package} "
            f"({user_files.brief(error)}): pip install 'gptfl-jax[{tracker}]'"
        ) from None


def start(
    config: ConfigDict,
    folder: pathlib.Path,
    name: str,
    group: str,
    done: int | None = None,
) -> Tracking:
    """Starts the tracker of a run, or goes on in it.

    One that is new to a run that goes on is shown the lines it has missed.

    Args:
        config: of the run.
        folder: of the run, with its metrics.jsonl.
        name: of the run, to show.
        group: of the runs that belong together.
        done: the step that the run goes on from; None: it is new.

    Raises:
        UserError: the tracker's package is missing.
    """
    if config.tracker == "none" or jax.process_index() != 0:
        return Tracking()
    check(config)
    tracking = Tracking(None, choices.stem(config.tracker))
    with tracking.guarded():
        known = _id_in(folder, config.tracker) if done is not None else ""
        run = Run(
            id=known or f"{_safe(name)}-{secrets.token_hex(4)}",
            name=name,
            group=group,
            folder=folder,
            config=_flat(config.to_dict()),
            machine=artifacts.machine(),
            done=done if known else None,
        )
        tracker = choices.bind(
            families.TRACKER,
            config.tracker,
            config.tracker_options.to_dict(),
            run=run,
        )
        artifacts.write_json(folder / FILE, {"tracker": config.tracker, "id": run.id})
        tracking = Tracking(tracker, choices.stem(config.tracker))
        if done is not None and not known:
            for line in artifacts.read_metrics(folder / "metrics.jsonl"):
                if line["step"] <= done:
                    tracking.line(line)
    return tracking


def _id_in(folder: pathlib.Path, tracker: str) -> str:
    """The id that a run has in a tracker; empty: it has none."""
    shape = {"tracker": "text", "id": "text"}
    try:
        record = artifacts.read_json(
            folder / FILE, shape, "delete it, and the tracker begins a new run"
        )
    except FileNotFoundError:
        return ""
    return record["id"] if record["tracker"] == tracker else ""


def _safe(name: str) -> str:
    kept = (c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in name)
    return "".join(kept)[:80]


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat
