"""Writing what the rounds of a federation leave: lines, states, clients' accuracy."""

import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int32, PyTree
from ml_collections import ConfigDict

from gptfl_jax import artifacts, evaluation, trackers, trainable
from gptfl_jax.errors import UserError
from gptfl_jax.fl import composition, personalisation, rounds
from gptfl_jax.progress import Progress


class CohortFailed(UserError):
    """No update of a cohort was finite."""


class Done(NamedTuple):
    """How far a run is: where it begins, goes on, or ends."""

    round: int | None
    """Rounds done; None: a new run."""
    bytes_up: int
    bytes_down: int


class Observed(NamedTuple):
    """What is due of the state after a round, on the device until it is read."""

    counts: evaluation.Counts | None
    """Of the test set."""
    of_clients: personalisation.ClientCounts | None
    """Of the clients' held-out examples."""
    state: composition.ServerState | None
    """To save."""


def checkpoint(
    state: composition.ServerState, packed: PyTree, done: Done
) -> dict[str, Any]:
    """All that a run needs to go on; its keys follow from the seed and the round.

    Args:
        packed: `state.own` as arrays, of the clients that have taken part.
    """
    return {
        # Under the same name as in stage 2's checkpoints, for `init=<folder>`.
        "variables": trainable.whole(state.variables),
        "state": state._replace(variables=None, own=None),
        "clients": packed,
        "known_clients": np.int64(len(packed.ids) if packed else 0),
        "bytes_up": np.int64(done.bytes_up),
        "bytes_down": np.int64(done.bytes_down),
    }


class Writer:
    """Writes what rounds have left: lines, states, and how clients came out.

    Args:
        config: of the run.
        folder: of the run.
        checkpoints: that states go to.
        start: where the run begins or goes on.
        tested_clients: whose accuracy `Observed.of_clients` is; None: nobody's.
        tracking: is given each line.
    """

    def __init__(
        self,
        config: ConfigDict,
        folder: pathlib.Path,
        checkpoints: artifacts.Checkpoints,
        start: Done,
        tested_clients: Int32[Array, " chosen"] | None,
        tracking: trackers.Tracking,
    ):
        self.config, self.folder, self.checkpoints = config, folder, checkpoints
        self.name, self.sent = folder.name, start
        self.tested_clients = tested_clients
        self.metrics_file = artifacts.Metrics(
            folder / "metrics.jsonl", start.round, follow=tracking.line
        )
        self.clock = time.perf_counter()

    def write(self, done: rounds.Round, bar: Progress) -> float | None:
        """Waits for a round, writes its line, and saves where that is due.

        Returns:
            The accuracy on the test set; None: the round was not tested.
        """
        line = {}
        if done.metrics is not None:
            line = jax.device_get(done.metrics)._asdict()
            failed = line.pop("failed")
            if failed:
                raise CohortFailed(self._all_dropped(done.number, line))
            self.sent = Done(
                done.number,
                self.sent.bytes_up + round(float(line.pop("bytes_up"))),
                self.sent.bytes_down + round(float(line.pop("bytes_down"))),
            )
            bar.update()
        line["bytes_up"], line["bytes_down"] = self.sent[1:]
        if done.observed.counts is not None:
            tested = evaluation.metrics(done.observed.counts)
            line |= tested._asdict()
            bar.note(f"accuracy {tested.accuracy:.3f}")
        if done.observed.of_clients is not None:
            line |= self._of_clients(done.number, done.observed.of_clients)
        now = time.perf_counter()
        self.metrics_file.write(done.number, **line, seconds=now - self.clock)
        self.clock = now
        if done.observed.state is not None:
            state = done.observed.state
            packed = state.own.pack() if state.own else ()
            # After the line: a run that goes on from here must find it written.
            self.checkpoints.save(
                done.number,
                checkpoint(state, packed, self.sent),
                {"accuracy": line.get("accuracy", np.nan)},
            )
        return line.get("accuracy")

    def _of_clients(
        self, round: int, counts: personalisation.ClientCounts
    ) -> dict[str, float]:
        """Saves what became of each client, and gives what goes into the line."""
        counts = jax.device_get(counts)
        if jax.process_index() == 0:
            content = {
                "round": round,
                "clients": self.tested_clients,
                "examples": counts.total,
                "right_before": counts.before,
                "right_after": counts.after,
            }
            artifacts.write_json(self.folder / "client_accuracy.json", content)
        return personalisation.summarise(counts)._asdict()

    def _all_dropped(self, round: int, line: dict[str, Any]) -> str:
        federated, dtype = self.config.federated, ""
        if federated.dtype == "float16":
            # Its largest number is 65504; bfloat16's range is that of float32.
            dtype = "set config.federated.dtype (now float16) to bfloat16 or float32, "
        return (
            f"{self.name}, round {round}: the updates of all {line['dropped']} clients "
            f"were NaN or infinite, so there is nothing to go on with. Try to {dtype}"
            "lower config.federated.client_learning_rate "
            f"(now {federated.client_learning_rate:g}), or set "
            "config.federated.clip_norm; metrics.jsonl shows how it came to this"
        )
