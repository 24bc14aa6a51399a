"""Which client owns which example; each public function is one way, and found here.

Every function returns `client_of_example`, int32 [examples], is a pure function of its
arguments, and costs O(examples + classes x clients) in numpy: a million clients take
seconds. `gptfl_jax.data.federated_data.federate` turns the result into the arrays that
the engine works on.

A function is a partition when its first parameter is `labels`, `num_examples` or
`clients`; of these, `num_clients` and `seed` it takes what it needs. The first line of
its docstring is the name to show, a colon and what it does.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int32

from gptfl_jax import choices, families
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.errors import UserError

globals().update(choices.available(families.PARTITION))
__all__ = ["partition", *choices.available(families.PARTITION)]


def partition(
    method: str,
    dataset: Dataset,
    num_clients: int,
    seed: int,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Int32[np.ndarray, " examples"], int]:
    """A partition by name, the user's own too, and the number of clients.

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
