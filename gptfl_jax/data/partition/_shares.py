"""Drawn shares, cuts at them, and a least number of examples for every client."""

import numpy as np


def check_enough(num_examples: int, num_clients: int, min_examples: int) -> None:
    if num_examples < num_clients * max(min_examples, 1):
        raise ValueError(
            f"num_clients = {num_clients} with min_examples = "
            f"{max(min_examples, 1)} needs {num_clients * max(min_examples, 1)} "
            f"examples; the training set has {num_examples}: lower one of the two"
        )


def rows_by_class(labels: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def draw_shares(
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


def cut(shares: np.ndarray, count: int) -> np.ndarray:
    """Client of each of `count` items, cut at the rounded cumulative shares."""
    ends = np.rint(np.cumsum(shares) * count).astype(np.int64)
    ends[-1] = count
    return np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))


def fill_up(
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
