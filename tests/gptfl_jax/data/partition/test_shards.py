"""Shards of one class."""

import numpy as np

from gptfl_jax.data import federated_data, partition

from .labels import dataset


def test_shards_are_of_one_class_and_equal():
    labels = np.repeat(np.arange(10), 20)
    owner = partition.shards(labels, 10, seed=0, shards_per_client=2)
    summary = federated_data.summarise(
        federated_data.federate(dataset(labels), owner, 10), num_classes=10
    )
    assert (summary.sizes == 20).all()
    assert ((summary.histogram == 10) | (summary.histogram % 20 == 0)).all()
    assert (summary.histogram > 0).sum(1).max() == 2
