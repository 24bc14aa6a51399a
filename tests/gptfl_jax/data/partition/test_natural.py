"""Clients as they were recorded."""

import numpy as np

from gptfl_jax.data import partition


def test_natural_clients_are_numbered_in_sorted_order():
    speakers = np.array(["c", "a", "c", "b"])
    np.testing.assert_array_equal(partition.natural(speakers), [2, 0, 2, 1])
