"""Label skew by Dirichlet draws."""

import numpy as np
import pytest

from gptfl_jax.data import federated_data, partition

from .labels import ALPHAS, dataset, labels_of


@pytest.mark.parametrize("split", [partition.dirichlet, partition.dirichlet_balanced])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_dirichlet_ends_with_no_client_below_the_minimum(split, alpha):
    labels = labels_of(1000, 10)
    owner = split(labels, 90, alpha, seed=0, min_examples=7)
    sizes = np.bincount(owner, minlength=90)
    assert len(sizes) == 90 and sizes.min() >= 7 and sizes.sum() == 1000
    again = split(labels, 90, alpha, seed=0, min_examples=7)
    np.testing.assert_array_equal(owner, again)
    assert (owner != split(labels, 90, alpha, seed=1, min_examples=7)).any()


@pytest.mark.parametrize("split", [partition.dirichlet, partition.dirichlet_balanced])
def test_dirichlet_with_as_many_clients_as_examples(split):
    owner = split(labels_of(50, 5), 50, 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(owner), np.arange(50))


def test_dirichlet_limits():
    labels = np.repeat(np.arange(10), 100)
    for_class = partition.dirichlet(labels, 20, 1e9, seed=0).reshape(10, 100)
    # Large alpha: every class is split evenly, up to rounding.
    for row in for_class:
        assert np.bincount(row, minlength=20).tolist() == [5] * 20
    # Small alpha: a class is at one client. (Two clients; none is left empty here.)
    for_class = partition.dirichlet(labels, 2, 1e-9, seed=0).reshape(10, 100)
    assert (for_class == for_class[:, :1]).all()


def test_balanced_dirichlet_gives_nothing_to_a_full_client():
    labels = labels_of(5000, 10)
    owner = partition.dirichlet_balanced(labels, 50, 0.1, seed=3)
    data = federated_data.federate(dataset(labels), owner, 50)
    summary = federated_data.summarise(data, 10)
    for counts in summary.histogram:
        last = np.flatnonzero(counts).max()
        assert counts[:last].sum() < 5000 / 50
    plain = np.bincount(partition.dirichlet(labels, 50, 0.1, seed=3), minlength=50)
    assert summary.sizes.std() < plain.std()


def test_many_clients():
    owner = partition.dirichlet(labels_of(400_000, 10), 100_000, 0.1, seed=0)
    sizes = np.bincount(owner, minlength=100_000)
    assert sizes.min() == 1 and sizes.sum() == 400_000
