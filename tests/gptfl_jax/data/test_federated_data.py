"""Examples by client, held out, counted."""

import numpy as np
import pytest

from gptfl_jax.data import federated_data

from .partition.labels import dataset


def test_federate_sorts_by_client_and_keeps_the_order_within():
    data = federated_data.federate(
        dataset([5, 4, 3, 2, 1, 0]), np.array([2, 0, 2, 0, 0, 2]), 4
    )
    np.testing.assert_array_equal(data.inputs[:, 0, 0, 0], [1, 3, 4, 0, 2, 5])
    np.testing.assert_array_equal(data.labels, [4, 2, 1, 5, 3, 0])
    np.testing.assert_array_equal(data.offsets, [0, 3, 3, 6, 6])
    assert data.labels.dtype == data.offsets.dtype == np.int32


def test_federate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"client numbers must lie in 0\.\.1, and go"):
        federated_data.federate(dataset([0, 0]), np.array([0, 2]), 2)
    with pytest.raises(ValueError, match=r"3 labels, 2 client numbers and 3 inputs"):
        federated_data.federate(dataset([0, 0, 0]), np.array([0, 1]), 2)
    wrong = dataset([3, 6])._replace(class_names=("a", "b", "c", "d"))
    message = r"labels must lie in 0\.\.3, and go from 3 to 6"
    with pytest.raises(ValueError, match=message):
        federated_data.federate(wrong, np.array([0, 1]), 2)


def test_summary_counts_classes_by_client():
    data = federated_data.federate(
        dataset([0, 1, 1, 2, 1]), np.array([0, 0, 1, 1, 1]), 3
    )
    summary = federated_data.summarise(data, 3)
    np.testing.assert_array_equal(summary.sizes, [2, 3, 0])
    np.testing.assert_array_equal(summary.histogram, [[1, 1, 0], [0, 2, 1], [0, 0, 0]])
    assert "3 clients, 5 examples; a client has 0 to 3 examples" in str(summary)
    alike = federated_data.federate(dataset([0, 1, 0, 2]), np.array([0, 0, 1, 1]), 2)
    assert str(federated_data.summarise(alike, 3)) == (
        "2 clients, 4 examples; a client has 2 examples of 2 classes; its most "
        "frequent class makes up 50% on average"
    )


def test_held_out_examples_are_a_share_of_each_client():
    owner = np.random.default_rng(0).permutation(
        np.repeat([0, 1, 3, 4], [10, 1, 25, 2])
    )
    held_out = federated_data.hold_out(owner, 0.3, seed=0)
    # 3; 0.3 rounds to 0; 7.5 rounds to the even 8; 0.6 rounds to 1.
    assert np.bincount(owner[held_out], minlength=5).tolist() == [3, 0, 0, 8, 1]
    # However much is asked for, one example stays.
    most = np.bincount(
        owner[federated_data.hold_out(owner, 0.999, seed=0)], minlength=5
    )
    assert most.tolist() == [9, 0, 0, 24, 1]
    assert not federated_data.hold_out(owner, 0.0, seed=0).any()
    np.testing.assert_array_equal(held_out, federated_data.hold_out(owner, 0.3, seed=0))
    assert (held_out != federated_data.hold_out(owner, 0.3, seed=1)).any()
    with pytest.raises(ValueError, match=r"1\.0: takes a number in \[0, 1\)"):
        federated_data.hold_out(owner, 1.0, seed=0)


def test_held_out_examples_are_drawn_uniformly():
    # Of 20,000 clients with 4 examples each, one held out: each place as often.
    owner = np.tile(np.arange(20_000), 4)
    held_out = federated_data.hold_out(owner, 0.25, seed=5).reshape(4, -1)
    assert (held_out.sum(0) == 1).all()
    np.testing.assert_allclose(held_out.mean(1), 0.25, atol=0.02)
