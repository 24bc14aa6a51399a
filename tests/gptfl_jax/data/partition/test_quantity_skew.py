"""Clients of different sizes."""

import numpy as np

from gptfl_jax.data import partition


def test_quantity_skew_changes_sizes_only():
    owner = partition.quantity_skew(10_000, 20, 0.5, seed=0, min_examples=3)
    sizes = np.bincount(owner, minlength=20)
    assert sizes.min() >= 3 and sizes.max() > 1000
    labels = np.arange(10_000) % 2
    largest = labels[owner == sizes.argmax()]
    assert abs(largest.mean() - 0.5) < 0.05
