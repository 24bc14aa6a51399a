import numpy as np

from gptfl_jax.data import datasets


def test_hold_out_is_a_share_of_each_class():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2 + [3], np.int32)
    held_out = datasets.hold_out(labels, 0.1, seed=0)
    assert np.bincount(labels[held_out]).tolist() == [2, 1, 1]  # none of class 3
    np.testing.assert_array_equal(held_out, datasets.hold_out(labels, 0.1, seed=0))
    assert (held_out != datasets.hold_out(labels, 0.1, seed=1)).any()
