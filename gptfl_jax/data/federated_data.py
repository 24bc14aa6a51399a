"""A data set dealt to clients: arrays for the engine, held-out examples, a summary.

Which client owns which example is what `gptfl_jax.data.partition` says.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, PyTree, Shaped

from gptfl_jax.data.datasets import Dataset
from gptfl_jax.data.stored_rows import Rows, take

# Beside the seed in the generator of `hold_out`.
_HOLD_OUT = 1


class FederatedData(NamedTuple):
    """All clients' examples, sorted by client. Put it on the device once.

    Or stream it, cohort by cohort: see `gptfl_jax.fl.streaming`.
    """

    inputs: PyTree[Shaped[Array | Rows, "examples ..."]]
    """uint8 or float32."""
    labels: Int32[Array | np.ndarray, " examples"]
    offsets: Int32[Array | np.ndarray, " clients_plus_1"]
    """Client c owns rows offsets[c]:offsets[c + 1]."""
    starts: Int32[Array | np.ndarray, " cohort"] | None = None
    """Where in `inputs` each client of the cohort begins, when that holds the rows of
    one cohort only; None: at its offset."""

    def begins(self, cohort: Int[Array, " cohort"]) -> Int32[Array, " cohort"]:
        """First row of each client of the cohort that the rows are of, or of any."""
        return self.offsets[cohort] if self.starts is None else self.starts


class Summary(NamedTuple):
    """What a partition looks like."""

    sizes: Int[np.ndarray, " clients"]
    """Examples of each client."""
    histogram: Int[np.ndarray, "clients classes"]
    """Examples of each class at each client."""

    def __str__(self) -> str:
        present = (self.histogram > 0).sum(1)
        share = self.histogram.max(1) / np.maximum(self.sizes, 1)
        return (
            f"{len(self.sizes):,} clients, {self.sizes.sum():,} examples; a client has "
            f"{_range(self.sizes, 'examples')} of {_range(present, 'classes')}; its "
            f"most frequent class makes up {np.mean(share):.0%} on average"
        )


def _range(counts: Int[np.ndarray, " clients"], what: str) -> str:
    least, most = counts.min(), counts.max()
    if least == most:
        return f"{least} {what}"
    return f"{least} to {most} {what} (median {np.median(counts):g})"


def hold_out(
    client_of_example: Int[np.ndarray, " examples"],
    fraction: int | float,
    seed: int,
) -> Bool[np.ndarray, " examples"]:
    """Which examples each client keeps out of its training, to be tested on them.

    Of a client's n examples these are `fraction * n`, rounded (halves to even), but
    never all of them: at least one stays for training. Drawn uniformly among them.

    Raises:
        ValueError: a fraction outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"held-out fraction {fraction}: takes a number in [0, 1)")
    # A stream of its own: not the draws that dealt the examples.
    draws = np.random.default_rng((seed, _HOLD_OUT)).random(len(client_of_example))
    order = np.lexsort((draws, client_of_example))
    sizes = np.bincount(client_of_example)
    counts = np.minimum(np.rint(fraction * sizes), np.maximum(sizes - 1, 0))
    owner = client_of_example[order]
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[owner]
    held_out = np.empty(len(order), bool)
    held_out[order] = rank < counts[owner]
    return held_out


def federate(
    dataset: Dataset,
    client_of_example: Int[np.ndarray, " examples"],
    num_clients: int,
) -> FederatedData:
    """Sorts a data set by client (within a client the order stays).

    The arrays stay on the host: `execution.place` the result, or stream it.

    Raises:
        ValueError: a client number outside 0..num_clients - 1, a label that is no
            class's, or not as many of them as there are examples.
    """
    leaves = jax.tree.leaves(dataset.inputs)
    counts = [len(each) for each in (dataset.labels, client_of_example, *leaves)]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{counts[0]:,} labels, {counts[1]:,} client numbers and "
            f"{counts[2]:,} inputs: takes one of each for every example"
        )
    for what, values, most in (
        ("client numbers", client_of_example, num_clients),
        ("labels", dataset.labels, dataset.num_classes),
    ):
        if len(values) and (values.min() < 0 or values.max() >= most):
            raise ValueError(
                f"{what} must lie in 0..{most - 1}, and go from {values.min()} to "
                f"{values.max()}"
            )
    order = np.argsort(client_of_example, kind="stable")
    sizes = np.bincount(client_of_example, minlength=num_clients)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    inputs = jax.tree.map(lambda x: take(x, order), dataset.inputs)
    return FederatedData(inputs, dataset.labels[order], offsets)


def summarise(data: FederatedData, num_classes: int) -> Summary:
    """Sizes and label histogram of every client; `print` it for a line of text."""
    offsets, labels = np.asarray(data.offsets), np.asarray(data.labels)
    sizes = np.diff(offsets)
    client = np.repeat(np.arange(len(sizes)), sizes)
    # Rows behind the last client's are padding.
    histogram = np.bincount(
        client * num_classes + labels[: len(client)], minlength=len(sizes) * num_classes
    )
    return Summary(sizes, histogram.reshape(len(sizes), num_classes))
