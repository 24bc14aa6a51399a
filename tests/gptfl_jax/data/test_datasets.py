import numpy as np

from gptfl_jax.data import datasets


def test_hold_out_leaves_one_of_each_class():
    labels = np.repeat(np.arange(3, dtype=np.int32), [1, 3, 10])
    held_out = datasets.hold_out(labels, 0.9, seed=0)
    assert np.bincount(labels[held_out], minlength=3).tolist() == [0, 2, 9]


def test_hold_out_is_a_share_of_each_class():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2 + [3], np.int32)
    held_out = datasets.hold_out(labels, 0.1, seed=0)
    assert np.bincount(labels[held_out]).tolist() == [2, 1, 1]  # none of class 3
    np.testing.assert_array_equal(held_out, datasets.hold_out(labels, 0.1, seed=0))
    assert (held_out != datasets.hold_out(labels, 0.1, seed=1)).any()


def test_what_is_the_same_is_held_out_together():
    labels = np.array([0] * 40 + [1] * 20, np.int32)
    # Every picture of class 0 is there twice; two of class 1 are copies of the first.
    pictures = np.arange(60) % 20 + 20 * labels
    pictures[40:42] = 0
    same = datasets.contents((pictures[:, None], np.zeros(60)))
    assert same.tolist() == datasets.contents(pictures).tolist()
    np.testing.assert_array_equal(same[:, None] == same, pictures[:, None] == pictures)
    for seed in range(5):
        held_out = datasets.hold_out(labels, 0.5, seed, same)
        assert not set(pictures[held_out]) & set(pictures[~held_out])
        assert held_out[:20].sum() == 10 and held_out[42:].sum() == 9
    # Where nothing is there twice, the draw is that of the labels alone.
    np.testing.assert_array_equal(
        datasets.hold_out(labels, 0.5, 0, np.arange(60)),
        datasets.hold_out(labels, 0.5, 0),
    )
