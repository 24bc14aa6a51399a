"""Synthetic examples among the clients' own."""

import numpy as np
from jaxtyping import Int, Int64

from gptfl_jax.data.datasets import Dataset, concatenate, select
from gptfl_jax.data.federated_data import FederatedData, federate
from gptfl_jax.errors import UserError

# Beside seed and client in the generator of `draw`.
_MIXING = 2


def draw(
    labels: Int[np.ndarray, " synthetic"],
    owned: Int[np.ndarray, " classes"],
    count: int,
    allocation: str,
    seed: int,
    client: int,
) -> Int64[np.ndarray, " count"]:
    """The rows of the synthetic examples that a client gets.

    Args:
        labels: of all synthetic examples.
        owned: real examples of each class that the client has.
        count: how many it gets, of the classes that there are synthetic ones of.
        allocation: "equal" gives as many of each class, "fill" always one of the class
            that it has fewest of. What does not divide goes to classes drawn at random.
        seed, client: of the draw. Of a class a row comes again when all have come.

    Raises:
        ValueError: an unknown allocation.
    """
    if allocation not in ("equal", "fill"):
        raise ValueError(f"allocation {allocation!r}: takes 'equal' or 'fill'")
    generator = np.random.default_rng((seed, _MIXING, client))
    classes = generator.permutation(np.unique(labels))
    level = owned[classes].copy() if allocation == "fill" else np.zeros(len(classes))
    wanted = np.zeros(len(classes), int)
    for _ in range(count):
        lowest = int(np.argmin(level))
        level[lowest] += 1
        wanted[lowest] += 1
    rows = []
    for label, number in sorted(zip(classes.tolist(), wanted.tolist(), strict=True)):
        of_class = np.flatnonzero(labels == label)
        passes = -(-number // len(of_class))
        order = [generator.permutation(of_class) for _ in range(passes)]
        rows.append(np.concatenate([*order, np.zeros(0, int)])[:number])
    return np.concatenate(rows).astype(np.int64)


def mix(
    dataset: Dataset,
    client_of_example: Int[np.ndarray, " examples"],
    num_clients: int,
    synthetic: Dataset,
    per_client: int,
    allocation: str = "equal",
    seed: int = 0,
) -> FederatedData:
    """`federate`, with synthetic examples behind every client's own.

    A client that has none of its own gets as many. To the algorithms they are the
    client's: they count in its size, hence in its weight.

    Generated data merged with private data for local training is what FedGC does:
    Federated Learning Empowered by Generative Content (arXiv 2312.05807).

    Args:
        dataset, client_of_example, num_clients: as `federate` takes them.
        synthetic: of the same classes and shape.
        per_client: synthetic examples of each client; 0: those of `federate` alone.
        allocation, seed: as `draw` takes them.

    Raises:
        ValueError: as `federate` and `draw`.
        UserError: there are no synthetic examples.
    """
    if not per_client:
        return federate(dataset, client_of_example, num_clients)
    if not len(synthetic.labels):
        raise UserError("there is no synthetic example to give to the clients")
    owned = np.zeros((num_clients, dataset.num_classes), int)
    np.add.at(owned, (client_of_example, dataset.labels), 1)
    rows = np.concatenate(
        [
            draw(synthetic.labels, owned[client], per_client, allocation, seed, client)
            for client in range(num_clients)
        ]
    )
    owner = np.repeat(np.arange(num_clients), per_client)
    both = concatenate(dataset, select(synthetic, rows))
    return federate(both, np.concatenate([client_of_example, owner]), num_clients)
