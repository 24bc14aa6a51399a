import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.fl import aggregation

UPDATES = np.array([[1.0, -2.0], [3.0, 0.0], [-4.0, 8.0], [100.0, 2.0], [0.0, 1.0]])


def combine(how, updates, weights, lanes=2, key=None):
    """Adds updates a few lanes at a time, as training does, then finishes."""
    size = len(updates)
    updates, weights = jnp.asarray(updates), jnp.asarray(weights)
    sums = how.init({"w": jnp.zeros(updates.shape[1])}, size)
    for first in range(0, size, lanes):
        positions = jnp.arange(first, first + lanes)
        inside = positions < size
        index = jnp.minimum(positions, size - 1)
        some = jnp.where(inside[:, None], updates[index], 0)
        weight = jnp.where(inside, weights[index], 0)
        sums = how.add(sums, {"w": some}, weight, positions)
    key = jax.random.key(0) if key is None else key
    return np.asarray(how.finish(sums, weights, key)["w"])


@pytest.mark.parametrize("lanes", [1, 2])
def test_mean(lanes):
    weights = [0.1, 0.2, 0.3, 0.0, 0.4]
    mean = combine(aggregation.mean(), UPDATES, weights, lanes)
    # (0.1 + 0.6 - 1.2, -0.2 + 2.4 + 0.4) / 1
    np.testing.assert_allclose(mean, [-0.5, 2.6], rtol=1e-6)


def test_weights_of_those_left_are_normalised():
    mean = combine(aggregation.mean(), UPDATES, [0.1, 0.3, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(mean, [2.5, -0.5], rtol=1e-6)
    nothing = combine(aggregation.mean(), UPDATES * 0, [0.0] * 5)
    np.testing.assert_array_equal(nothing, [0, 0])


def test_weightings():
    examples = jnp.array([0, 3, 5])
    assert aggregation.weighting("examples")(examples).tolist() == [0, 3, 5]
    assert aggregation.weighting("uniform")(examples).tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="weighting 'size': takes"):
        aggregation.weighting("size")


@pytest.mark.parametrize("lanes", [1, 2])
def test_median_of_odd_and_even_numbers(lanes):
    everyone = combine(aggregation.median(), UPDATES, [0.2] * 5, lanes)
    np.testing.assert_allclose(everyone, [1, 1])
    # Without the first: 3, -4, 100, 0 and 0, 8, 2, 1.
    updates = np.where(np.arange(5)[:, None] == 0, 0, UPDATES)
    four = combine(aggregation.median(), updates, [0, 0.25, 0.25, 0.25, 0.25], lanes)
    np.testing.assert_allclose(four, [1.5, 1.5])


def test_trimmed_mean():
    mean = combine(aggregation.trimmed_mean(0.2), UPDATES, [0.2] * 5)
    np.testing.assert_allclose(mean, [(1 + 3 + 0) / 3, (0 + 2 + 1) / 3], rtol=1e-6)
    plain = combine(aggregation.trimmed_mean(0.0), UPDATES, [0.2] * 5)
    np.testing.assert_allclose(plain, UPDATES.mean(0), rtol=1e-6)
    with pytest.raises(ValueError, match="trimmed fraction 0.5: takes"):
        aggregation.trimmed_mean(0.5)


@pytest.mark.parametrize("lanes", [1, 2])
def test_clipped_mean(lanes):
    updates = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, -8.0], [0.0, 0.0]])
    weights = [0.5, 0.3, 0.2, 0.0]
    mean = combine(aggregation.clipped_mean(1.0), updates, weights, lanes)
    # (0.6, 0.8) + (0.3, 0.4) + (0, -1), over the three that reported.
    np.testing.assert_allclose(mean, [0.3, 0.2 / 3], rtol=1e-6)


def test_noise_of_the_clipped_mean():
    size, clients = 20_000, 4
    noisy = combine(
        aggregation.clipped_mean(0.5, noise_multiplier=2.0),
        np.zeros((clients, size)),
        [0.25] * clients,
        key=jax.random.key(1),
    )
    np.testing.assert_allclose(noisy.std(), 2.0 * 0.5 / clients, rtol=0.03)
    np.testing.assert_allclose(noisy.mean(), 0, atol=0.01)


def test_half_precision_is_summed_in_float32():
    how = aggregation.mean()
    like = {"w": jnp.zeros(1, jnp.float16)}
    sums = how.init(like, 1)
    assert sums["w"].dtype == jnp.float32
    one = {"w": jnp.full((4, 1), 3e4, jnp.float16)}  # The sum overflows float16.
    sums = how.add(sums, one, jnp.ones(4), jnp.arange(4))
    np.testing.assert_allclose(sums["w"], 12e4, rtol=1e-3)
