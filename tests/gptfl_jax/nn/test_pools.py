"""Pools against windows that numpy cuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gptfl_jax import convolution, nn


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


POOLS = {
    "2": ((6, 4), 2, {}),
    "odd sizes": ((7, 5), 2, {}),
    "2x3": ((6, 7), (2, 3), {}),
    "one axis": ((9,), 2, {}),
    "overlapping": ((7, 7), 3, dict(stride=2)),
    "padded": ((7, 6), 3, dict(stride=2, padding=1)),
    "same": ((5, 5), 2, dict(padding="SAME")),
}


def windows_of(x, window, stride=None, padding=0):
    """[batch, *out, values, channels]: the windows of x, NaN where padding is."""
    sizes = x.shape[1:-1]
    window = convolution.each_axis(window, len(sizes))
    stride = window if stride is None else convolution.each_axis(stride, len(sizes))
    pads = [(padding, padding)] * len(sizes)
    if padding == "SAME":
        pads = [(0, -n % k) for n, k in zip(sizes, window, strict=True)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=np.nan)
    axes = tuple(range(1, x.ndim - 1))
    views = np.lib.stride_tricks.sliding_window_view(x, window, axes)
    views = views[(slice(None), *(slice(None, None, s) for s in stride))]
    # sliding_window_view puts the window behind the channels.
    return np.swapaxes(views.reshape(*views.shape[: x.ndim], -1), -1, -2)


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_pools_of_windows(pool):
    sizes, window, arguments = pool
    x = random(2, *sizes, 3)
    windows = windows_of(x, window, **arguments)
    largest = nn.max_pool(x, window, **arguments)
    np.testing.assert_array_equal(largest, np.nanmax(windows, -2))
    mean = nn.avg_pool(x, window, **arguments)
    expected = np.nansum(windows, -2) / windows.shape[-2]
    np.testing.assert_allclose(mean, expected, atol=1e-14)
    mean = nn.avg_pool(x, window, **arguments, count_include_pad=False)
    np.testing.assert_allclose(mean, np.nanmean(windows, -2), atol=1e-14)


def test_gradients_of_pools_side_by_side():
    x = jnp.array([[1, 5, 2, 2, 9], [5, 0, 2, 1, 9], [7, 7, 7, 7, 7.0]])
    x = x.reshape(1, 3, 5, 1)
    cotangent = jnp.array([10.0, 20.0]).reshape(1, 1, 2, 1)
    _, pull = jax.vjp(lambda x: nn.max_pool(x, 2), x)
    # The first of the largest takes all; what no window covers takes nothing.
    expected = [[0, 10, 20, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(pull(cotangent)[0][0, :, :, 0], expected)
    _, pull = jax.vjp(lambda x: nn.avg_pool(x, 2), x)
    expected = [[2.5, 2.5, 5, 5, 0], [2.5, 2.5, 5, 5, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(pull(cotangent)[0][0, :, :, 0], expected)


def test_gradients_of_pools_agree_with_reduce_window():
    x = random(2, 7, 6, 3)
    around = (1, 2, 3, 1), (1, 2, 3, 1), "VALID"

    def gradient(pool):
        return jax.grad(lambda x: jnp.sum(jnp.sin(pool(x))))(x)

    np.testing.assert_allclose(
        gradient(lambda x: nn.max_pool(x, (2, 3))),
        gradient(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *around)),
        atol=1e-15,
    )
    np.testing.assert_allclose(
        gradient(lambda x: nn.avg_pool(x, (2, 3))),
        gradient(lambda x: lax.reduce_window(x, 0.0, lax.add, *around) / 6),
        atol=1e-15,
    )
