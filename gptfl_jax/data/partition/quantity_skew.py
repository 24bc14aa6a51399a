"""Clients of different sizes."""

import numpy as np
from jaxtyping import Int32

from gptfl_jax import rules
from gptfl_jax.data.partition._shares import (
    check_enough,
    cut,
    draw_shares,
    fill_up,
)


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
    check_enough(num_examples, num_clients, min_examples)
    generator = np.random.default_rng(seed)
    shares = draw_shares(generator, alpha, num_clients)
    owner = np.empty(num_examples, np.int32)
    owner[generator.permutation(num_examples)] = cut(shares, num_examples)
    return fill_up(owner, num_clients, min_examples, generator)
