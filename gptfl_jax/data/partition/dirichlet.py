"""Label skew by Dirichlet draws."""

import numpy as np
from jaxtyping import Int, Int32

from gptfl_jax import rules
from gptfl_jax.data.partition._shares import (
    check_enough,
    cut,
    draw_shares,
    fill_up,
    rows_by_class,
)


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
    check_enough(len(labels), num_clients, min_examples)
    owner = np.empty(len(labels), np.int32)
    for rows in rows_by_class(labels):
        rows = generator.permutation(rows)
        shares = draw_shares(generator, alpha, num_clients)
        owner[rows] = cut(shares, len(rows))
    return fill_up(owner, num_clients, min_examples, generator)


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
    check_enough(len(labels), num_clients, min_examples)
    generator = np.random.default_rng(seed)
    by_class = rows_by_class(labels)
    best, best_missing = None, np.inf
    for _ in range(attempts):
        owner = np.empty(len(labels), np.int32)
        sizes = np.zeros(num_clients, np.int64)
        for rows in by_class:
            rows = generator.permutation(rows)
            open_clients = np.flatnonzero(sizes * num_clients < len(labels))
            shares = draw_shares(generator, alpha, num_clients)[open_clients]
            if shares.sum() <= 0:  # all of the draw fell on full clients
                shares = draw_shares(generator, alpha, len(open_clients))
            owner[rows] = open_clients[cut(shares / shares.sum(), len(rows))]
            sizes += np.bincount(owner[rows], minlength=num_clients)
        missing = np.maximum(min_examples - sizes, 0).sum()
        if missing < best_missing:
            best, best_missing = owner, missing
        if not missing:
            break
    return fill_up(best, num_clients, min_examples, generator)
