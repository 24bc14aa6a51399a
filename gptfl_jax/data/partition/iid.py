"""Clients that are alike."""

import numpy as np
from jaxtyping import Int32

from gptfl_jax.data.partition._shares import (
    check_enough,
)


def iid(
    num_examples: int, num_clients: int, seed: int
) -> Int32[np.ndarray, " {num_examples}"]:
    """IID: a random deal, client sizes differ by at most one."""
    check_enough(num_examples, num_clients, 1)
    generator = np.random.default_rng(seed)
    deal = (np.arange(num_examples) % num_clients).astype(np.int32)
    return generator.permutation(deal)
