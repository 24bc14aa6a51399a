import numpy as np
import pytest

from gptfl_jax.data import stored_rows
from gptfl_jax.data.stored_rows import Part, StoredRows


@pytest.fixture
def stored(tmp_path):
    """Seven RGB pictures in a file, four grey ones in another, and all of them."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (7, 2, 3, 3), np.uint8)
    greys = generator.integers(0, 256, (4, 2, 3, 1), np.uint8)
    parts = []
    for name, pixels in (("colours", colours), ("greys", greys)):
        np.save(tmp_path / f"{name}.npy", pixels)
        parts.append(Part(np.load(tmp_path / f"{name}.npy", mmap_mode="r")))
    return StoredRows(parts), np.concatenate([colours, greys.repeat(3, -1)])


def test_rows_are_those_of_the_array(stored):
    rows, array = stored
    assert (rows.shape, rows.dtype, rows.ndim) == (array.shape, array.dtype, 4)
    assert (rows.nbytes, rows.size, len(rows)) == (array.nbytes, array.size, 11)
    mask = np.arange(11) % 3 == 0
    for index in (3, -1, slice(5, 9), slice(None, None, -2), np.array([9, 0, 9]), mask):
        np.testing.assert_array_equal(rows[index], array[index])
        np.testing.assert_array_equal(rows[index, ..., 1], array[index, ..., 1])
    np.testing.assert_array_equal(np.asarray(rows), array)


def test_rows_are_chosen_and_joined_unread(stored):
    rows, array = stored
    order = np.random.default_rng(1).permutation(11)
    chosen = stored_rows.take(stored_rows.take(rows, order), np.array([2, 10, 2]))
    assert isinstance(chosen, StoredRows)
    np.testing.assert_array_equal(chosen[:], array[order[[2, 10, 2]]])
    more = np.full((2, 2, 3, 3), 7, np.uint8)
    both = stored_rows.join(more, chosen, rows.take(np.arange(11) > 8))
    expected = np.concatenate([more, array[order[[2, 10, 2]]], array[9:]])
    assert isinstance(both, StoredRows) and both.shape == expected.shape
    np.testing.assert_array_equal(both[:], expected)
    # Arrays are what they are in numpy.
    np.testing.assert_array_equal(stored_rows.join(more, more), [*more, *more])
    np.testing.assert_array_equal(stored_rows.take(array, order), array[order])
    with pytest.raises(ValueError, match="rows differ"):
        stored_rows.join(rows, more.astype(np.float32))


def test_digests_tell_equal_rows(stored):
    rows, array = stored
    twice = stored_rows.join(rows, array)
    digests = stored_rows.digests_of(twice)
    np.testing.assert_array_equal(digests[:11], digests[11:])
    assert len(set(digests.tolist())) == 11
    known = StoredRows([Part(array, np.arange(11).astype("S32"))])
    known = known.take(np.array([4, 1]))
    assert stored_rows.digests_of(known).tolist() == [b"4", b"1"]
