"""Clients that are alike."""

import numpy as np

from gptfl_jax.data import partition


def test_iid_deals_evenly_and_by_seed():
    owner = partition.iid(103, 10, seed=1)
    assert sorted(np.bincount(owner)) == [10] * 7 + [11] * 3
    np.testing.assert_array_equal(owner, partition.iid(103, 10, seed=1))
    assert (owner != partition.iid(103, 10, seed=2)).any()
