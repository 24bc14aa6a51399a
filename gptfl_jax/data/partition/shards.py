"""Label skew by shards of one class."""

import numpy as np
from jaxtyping import Int, Int32

from gptfl_jax import rules
from gptfl_jax.data.partition._shares import (
    check_enough,
)


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
    check_enough(len(labels), num_clients, shards_per_client)
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(labels))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    shard = np.arange(len(rows)) * num_shards // len(rows)
    client_of_shard = generator.permutation(num_shards) // shards_per_client
    owner = np.empty(len(labels), np.int32)
    owner[rows] = client_of_shard[shard]
    return owner
