"""Synthetic examples among the clients' own."""

import numpy as np
import pytest

from gptfl_jax.data import federated_data, mixing
from gptfl_jax.errors import UserError

from .partition.labels import dataset


def test_none_is_federate():
    real, owner = dataset([0, 1, 1, 0]), np.array([1, 0, 1, 1])
    mixed = mixing.mix(real, owner, 3, dataset([0, 1]), 0)
    for got, expected in zip(
        mixed[:3], federated_data.federate(real, owner, 3)[:3], strict=True
    ):
        np.testing.assert_array_equal(got, expected)


def test_every_client_gets_as_many_behind_its_own():
    """Three clients, of which the last has no example of its own."""
    real, owner = dataset([0, 1, 1, 0]), np.array([1, 0, 1, 1])
    synthetic = dataset([1, 0, 1, 0, 0])
    # Told from the real ones: 100 more.
    synthetic = synthetic._replace(inputs=synthetic.inputs + 100)
    data = mixing.mix(real, owner, 3, synthetic, 4, seed=5)
    np.testing.assert_array_equal(data.offsets, [0, 5, 12, 16])
    pixels = data.inputs[:, 0, 0, 0]
    np.testing.assert_array_equal(pixels[:1], [1])
    np.testing.assert_array_equal(pixels[5:8], [0, 2, 3])
    for first in (1, 8, 12):
        made = slice(first, first + 4)
        assert sorted(data.labels[made]) == [0, 0, 1, 1]
        np.testing.assert_array_equal(
            synthetic.labels[pixels[made] - 100], data.labels[made]
        )
        assert len({*pixels[made].tolist()}) == 4
    again = mixing.mix(real, owner, 3, synthetic, 4, seed=5)
    np.testing.assert_array_equal(again.inputs, data.inputs)
    other = mixing.mix(real, owner, 3, synthetic, 4, seed=6)
    assert (other.inputs != data.inputs).any()


@pytest.mark.parametrize(
    ("allocation", "owned", "count", "expected"),
    [
        ("equal", [9, 0, 1], 6, [2, 2, 2]),
        # Filled up to a level, as water: 5 + 0, 2 + 3, 0 + 5.
        ("fill", [5, 2, 0], 8, [0, 3, 5]),
        ("fill", [9, 0, 1], 3, [0, 2, 1]),
    ],
)
def test_classes_of_what_a_client_gets(allocation, owned, count, expected):
    labels = np.array([0, 1, 2, 2, 1, 0])
    rows = mixing.draw(labels, np.array(owned), count, allocation, 0, 3)
    np.testing.assert_array_equal(np.bincount(labels[rows], minlength=3), expected)
    # None comes again before all of its class have come.
    for label, number in enumerate(expected):
        counts = np.bincount(rows[labels[rows] == label], minlength=6)
        assert counts.max() == -(-number // 2)


def test_what_does_not_divide_goes_to_classes_at_random():
    labels, owned = np.arange(3), np.zeros(3, int)
    drawn = {
        mixing.draw(labels, owned, 1, "equal", 0, client)[0] for client in range(20)
    }
    assert drawn == {0, 1, 2}


def test_refusals():
    with pytest.raises(ValueError, match=r"allocation 'most': takes 'equal' or"):
        mixing.draw(np.zeros(1, int), np.zeros(1, int), 1, "most", 0, 0)
    nothing = dataset([0])._replace(labels=np.zeros(0, np.int32))
    with pytest.raises(UserError, match="no synthetic example"):
        mixing.mix(dataset([0]), np.zeros(1, int), 1, nothing, 2)
