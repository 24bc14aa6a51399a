"""Which client owns which example.

Every function returns `client_of_example`, int32 [examples], is a pure function of its
arguments, and costs O(examples + classes x clients) in numpy: a million clients take
seconds. `federate` turns the result into the arrays the engine works on.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, PyTree, Shaped

from gptfl_jax import choices, families, rules
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.errors import UserError

# Beside the seed in the generator of `hold_out`.
_HOLD_OUT = 1


class FederatedData(NamedTuple):
    """All clients' examples, sorted by client. Put it on the device once.

    Or stream it, cohort by cohort: see `gptfl_jax.fl.streaming`.
    """

    inputs: PyTree[Shaped[Array | np.ndarray, "examples ..."]]
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
            f"{self.sizes.min()} to {self.sizes.max()} examples "
            f"(median {np.median(self.sizes):g}) of {present.min()} to {present.max()} "
            f"classes (median {np.median(present):g}); its most frequent class makes "
            f"up {np.mean(share):.0%} on average"
        )


def natural(
    clients: Shaped[np.ndarray, " examples"],
) -> Int32[np.ndarray, " examples"]:
    """The data set's own clients (writers, speakers), numbered in sorted order."""
    return np.unique(clients, return_inverse=True)[1].astype(np.int32)


def iid(
    num_examples: int, num_clients: int, seed: int
) -> Int32[np.ndarray, " {num_examples}"]:
    """IID: a random deal, client sizes differ by at most one."""
    _check_enough(num_examples, num_clients, 1)
    generator = np.random.default_rng(seed)
    deal = (np.arange(num_examples) % num_clients).astype(np.int32)
    return generator.permutation(deal)


def dirichlet(
    labels: Int[np.ndarray, " examples"],
    num_clients: int,
    alpha: rules.Positive = 0.1,
    seed: int = 0,
    min_examples: rules.PositiveCount = 1,
) -> Int32[np.ndarray, " examples"]:
    """Label skew: each class is split in proportions drawn from Dirichlet(alpha).

    Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification (arXiv 1909.06335) and what followed it. Unlike the usual code it
    draws once and never again: clients left with fewer than `min_examples` are then
    filled up, each with random examples of one of the largest clients (or a few), so
    that it ends for any alpha and stays as skewed.

    Args:
        labels: class of each example.
        num_clients: how many there are.
        alpha: concentration; small: each class at few clients, large: even.
        seed: of the draws.
        min_examples: fewest examples of a client.
    """
    generator = np.random.default_rng(seed)
    _check_enough(len(labels), num_clients, min_examples)
    owner = np.empty(len(labels), np.int32)
    for rows in _rows_by_class(labels):
        rows = generator.permutation(rows)
        shares = _dirichlet(generator, alpha, num_clients)
        owner[rows] = _cut(shares, len(rows))
    return _fill_up(owner, num_clients, min_examples, generator)


def dirichlet_balanced(
    labels: Int[np.ndarray, " examples"],
    num_clients: int,
    alpha: rules.Positive = 0.1,
    seed: int = 0,
    min_examples: rules.PositiveCount = 1,
    attempts: rules.PositiveCount = 20,
) -> Int32[np.ndarray, " examples"]:
    """Balanced label skew: with similar client sizes, as the original GPT-FL.

    As `dirichlet`, class by class, but a client that already holds `examples / clients`
    or more takes nothing of the next class. The original redraws until every client
    has `min_examples` (5, or 32 for CIFAR-10), which may never end; here the best of
    `attempts` draws is kept and what is missing then filled up.

    Args:
        labels: class of each example.
        num_clients: how many there are.
        alpha: concentration; small: each class at few clients, large: even.
        seed: of the draws.
        min_examples: fewest examples of a client.
        attempts: most draws.
    """
    _check_enough(len(labels), num_clients, min_examples)
    generator = np.random.default_rng(seed)
    by_class = _rows_by_class(labels)
    best, best_missing = None, np.inf
    for _ in range(attempts):
        owner = np.empty(len(labels), np.int32)
        sizes = np.zeros(num_clients, np.int64)
        for rows in by_class:
            rows = generator.permutation(rows)
            open_clients = np.flatnonzero(sizes * num_clients < len(labels))
            shares = _dirichlet(generator, alpha, num_clients)[open_clients]
            if shares.sum() <= 0:  # all of the draw fell on full clients
                shares = _dirichlet(generator, alpha, len(open_clients))
            owner[rows] = open_clients[_cut(shares / shares.sum(), len(rows))]
            sizes += np.bincount(owner[rows], minlength=num_clients)
        missing = np.maximum(min_examples - sizes, 0).sum()
        if missing < best_missing:
            best, best_missing = owner, missing
        if not missing:
            break
    return _fill_up(best, num_clients, min_examples, generator)


def shards(
    labels: Int[np.ndarray, " examples"],
    num_clients: int,
    seed: int,
    shards_per_client: rules.PositiveCount = 2,
) -> Int32[np.ndarray, " examples"]:
    """Shards: examples sorted by class are cut into equal shards, a pathological skew.

    Communication-Efficient Learning of Deep Networks from Decentralized Data
    (arXiv 1602.05629), section 3: each client gets `shards_per_client` of them, hence
    seldom more classes than that.

    Args:
        labels: class of each example.
        num_clients: how many there are.
        seed: of the draws.
        shards_per_client: shards of one class that a client gets.
    """
    num_shards = num_clients * shards_per_client
    _check_enough(len(labels), num_clients, shards_per_client)
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    shard = np.arange(len(rows)) * num_shards // len(rows)
    client_of_shard = generator.permutation(num_shards) // shards_per_client
    owner = np.empty(len(labels), np.int32)
    owner[rows] = client_of_shard[shard]
    return owner


def quantity_skew(
    num_examples: int,
    num_clients: int,
    alpha: rules.Positive = 0.1,
    seed: int = 0,
    min_examples: rules.PositiveCount = 1,
) -> Int32[np.ndarray, " {num_examples}"]:
    """Quantity skew: the same classes, but sizes are drawn from Dirichlet(alpha).

    Args:
        num_examples: how many there are.
        num_clients: how many there are.
        alpha: concentration; small: few clients with many examples.
        seed: of the draws.
        min_examples: fewest examples of a client.
    """
    _check_enough(num_examples, num_clients, min_examples)
    generator = np.random.default_rng(seed)
    shares = _dirichlet(generator, alpha, num_clients)
    owner = np.empty(num_examples, np.int32)
    owner[generator.permutation(num_examples)] = _cut(shares, num_examples)
    return _fill_up(owner, num_clients, min_examples, generator)


def partition(
    method: str,
    dataset: Dataset,
    num_clients: int,
    seed: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Int32[np.ndarray, " examples"], int]:
    """A partition by name, of those above or a user's own, and the number of clients.

    Args:
        method: what `config.federated.partition` takes.
        dataset: whose examples are dealt.
        num_clients: how many there are, where the partition does not say so itself.
        seed: of its draws.
        options: of the partition.

    Raises:
        UserError: no such partition or option, a data set without natural clients, or
            too few examples.
    """
    family = families.PARTITION
    if dataset.clients is None and choices.takes(family, method, "clients"):
        raise UserError(
            f"config.federated.partition = {method!r}: this data source has no natural "
            "clients; use 'iid' or 'dirichlet'"
        )
    owner = choices.bind(
        family,
        method,
        options,
        labels=dataset.labels,
        num_examples=len(dataset.labels),
        clients=dataset.clients,
        num_clients=num_clients,
        seed=seed,
    )
    if choices.takes(family, method, "num_clients"):
        return owner, num_clients
    return owner, int(owner.max()) + 1


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

    The arrays stay numpy: `jax.device_put` the result, or stream it.

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
    inputs = jax.tree.map(lambda x: x[order], dataset.inputs)
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


def _check_enough(num_examples: int, num_clients: int, min_examples: int) -> None:
    if num_examples < num_clients * max(min_examples, 1):
        raise ValueError(
            f"num_clients = {num_clients} with min_examples = "
            f"{max(min_examples, 1)} needs {num_clients * max(min_examples, 1)} "
            f"examples; the training set has {num_examples}: lower one of the two"
        )


def _rows_by_class(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def _dirichlet(
    generator: np.random.Generator, alpha: int | float, size: int
) -> np.ndarray:
    """Dirichlet(alpha, ..., alpha), also for alpha where a gamma draw underflows.

    Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha), taken in logarithms: the largest
    share is then never 0 / 0.
    """
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha {alpha}: takes a finite number > 0")
    alpha = max(alpha, 1e-100)  # keeps log(u) / alpha finite
    logs = np.log(generator.standard_gamma(alpha + 1, size))
    logs += np.log1p(-generator.random(size)) / alpha
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


def _cut(shares: np.ndarray, count: int) -> np.ndarray:
    """Client of each of `count` items, cut at the rounded cumulative shares."""
    ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
    ends[-1] = count
    return np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))


def _fill_up(
    owner: np.ndarray,
    num_clients: int,
    min_examples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Gives clients below the minimum random examples of the largest clients."""
    least = max(min_examples, 1)
    sizes = np.bincount(owner, minlength=num_clients)
    missing = np.maximum(least - sizes, 0)
    need = missing.sum()
    if not need:
        return owner
    # The highest water level above which clients hold at least `need` examples.
    low, high = least, int(sizes.max())
    while low < high:
        level = (low + high + 1) // 2
        if np.maximum(sizes - level, 0).sum() >= need:
            low = level
        else:
            high = level - 1
    gives = np.maximum(sizes - low, 0)
    donors = np.flatnonzero(gives)
    # What is above the level but not needed stays: one example a donor at most.
    gives[generator.permutation(donors)[: gives.sum() - need]] -= 1
    shuffled = generator.permutation(len(owner))
    by_client = shuffled[np.argsort(owner[shuffled], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.arange(len(owner)) - starts[owner[by_client]]
    taken = by_client[place < gives[owner[by_client]]]
    filled = owner.copy()
    receivers = np.repeat(np.arange(num_clients), missing)
    filled[taken] = receivers  # donor by donor: a receiver's classes are as few
    return filled
