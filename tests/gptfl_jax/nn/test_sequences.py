"""Sequences with padding behind them."""

import jax.numpy as jnp

from gptfl_jax import nn


def test_frame_mask():
    mask = nn.frame_mask(jnp.asarray([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]


def test_padding_is_hidden_and_left_out_of_the_mean():
    x = jnp.arange(1.0, 13).reshape(2, 3, 2)
    lengths = jnp.asarray([2, 0])
    hidden = nn.hide_padding(x, lengths)
    assert hidden.tolist() == [[[1, 2], [3, 4], [0, 0]], [[0, 0]] * 3]
    assert nn.mean_over_time(x, lengths).tolist() == [[2, 3], [0, 0]]
    assert nn.mean_over_time(x, None).tolist() == [[3, 4], [9, 10]]
    assert nn.hide_padding(x, None) is x
