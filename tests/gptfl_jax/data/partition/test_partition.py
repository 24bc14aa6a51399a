"""Partitions by name."""

import numpy as np
import pytest

from gptfl_jax.data import federated_data, partition
from gptfl_jax.errors import UserError

from .labels import dataset, labels_of


def test_partition_by_name():
    data = dataset(labels_of(100, 4), clients=np.repeat(["x", "y"], 50))
    owner, count = partition.partition("natural", data, 10, seed=0)
    assert count == 2 and owner.tolist() == [0] * 50 + [1] * 50
    for method in ("iid", "dirichlet", "dirichlet_balanced", "shards", "quantity_skew"):
        options = {} if method in ("iid", "shards") else {"alpha": 0.3}
        owner, count = partition.partition(method, data, 10, 0, options)
        assert count == 10 and np.unique(owner).tolist() == list(range(10))
    expected = partition.dirichlet(data.labels, 10, 0.3, 0, min_examples=2)
    owner, _ = partition.partition(
        "dirichlet", data, 10, 0, {"alpha": 0.3, "min_examples": 2}
    )
    np.testing.assert_array_equal(owner, expected)


@pytest.mark.parametrize(
    "method", ["iid", "dirichlet", "dirichlet_balanced", "shards", "quantity_skew"]
)
def test_a_data_set_of_one_class(method):
    data = dataset(np.zeros(40))
    skewed = {"alpha": 0.1, "min_examples": 2}
    options = {} if method in ("iid", "shards") else skewed
    owner, count = partition.partition(method, data, 10, 0, options)
    summary = federated_data.summarise(federated_data.federate(data, owner, count), 1)
    assert summary.sizes.min() >= 2 and summary.sizes.sum() == 40
    np.testing.assert_array_equal(summary.histogram[:, 0], summary.sizes)
    assert " of 1 classes;" in str(summary)


def test_what_cannot_be_split_is_refused():
    data = dataset(labels_of(30, 4))
    with pytest.raises(UserError, match="no natural clients"):
        partition.partition("natural", data, 10, seed=0)
    with pytest.raises(UserError, match="num_clients = 31 .* has 30"):
        partition.partition("iid", data, 31, seed=0)
    with pytest.raises(UserError, match="needs 40 examples"):
        partition.partition("dirichlet", data, 10, 0, {"min_examples": 4})
    with pytest.raises(UserError, match="iid takes no such option; it takes none"):
        partition.partition("iid", data, 10, 0, {"alpha": 0.1})
    with pytest.raises(UserError, match="alpha = 0"):
        partition.partition("dirichlet", data, 10, 0, {"alpha": 0})
    with pytest.raises(UserError, match="'even': takes one of dirichlet, .* natural"):
        partition.partition("even", data, 10, seed=0)
