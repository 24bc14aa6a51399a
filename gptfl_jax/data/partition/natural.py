"""Clients as they were recorded."""

import numpy as np
from jaxtyping import Int32, Shaped


def natural(
    clients: Shaped[np.ndarray, " examples"],
) -> Int32[np.ndarray, " examples"]:
    """Natural: the data set's own clients (writers, speakers), in sorted order."""
    return np.unique(clients, return_inverse=True)[1].astype(np.int32)
