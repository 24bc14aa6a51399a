import collections
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.fl import sampling


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 101, 4096, 65537])
def test_shuffled_is_a_permutation(n):
    order = sampling.shuffled(jax.random.key(n), jnp.arange(n), n)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_any_part_of_an_order_can_be_had_alone_with_traced_size():
    key, n = jax.random.key(3), 1000
    whole = sampling.shuffled(key, jnp.arange(n), n)
    part = jax.jit(sampling.shuffled)(key, jnp.array([999, 0, 500]), n)
    np.testing.assert_array_equal(part, whole[jnp.array([999, 0, 500])])


def test_positions_outside_give_valid_rows():
    order = sampling.shuffled(jax.random.key(0), jnp.array([-1, 5, 70]), 5)
    assert ((order >= 0) & (order < 5)).all()
    assert sampling.shuffled(jax.random.key(0), jnp.array([0, 3]), 0).tolist() == [0, 0]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_are_equally_likely(n):
    keys = jax.random.split(jax.random.key(1), 60_000)
    orders = jax.vmap(lambda key: sampling.shuffled(key, jnp.arange(n), n))(keys)
    counts = collections.Counter(map(tuple, np.asarray(orders).tolist()))
    observed = [counts[order] for order in itertools.permutations(range(n))]
    assert chi_square_deviation(np.array(observed)) < 4


@pytest.mark.parametrize("n", [37, 1000])
def test_where_an_item_goes_is_uniform(n):
    keys = jax.random.split(jax.random.key(2), 40_000)
    images = jax.vmap(lambda key: sampling.shuffled(key, jnp.array([0, 1, n - 1]), n))(
        keys
    )
    images = np.asarray(images)
    for column in range(3):
        assert chi_square_deviation(np.bincount(images[:, column], minlength=n)) < 4
    steps = (images[:, 1] - images[:, 0]) % n  # neighbours are independent
    assert chi_square_deviation(np.bincount(steps, minlength=n)[1:]) < 4


def chi_square_deviation(observed: np.ndarray) -> float:
    """How many standard deviations a chi-square against uniform lies off its mean."""
    expected = observed.mean()
    statistic = ((observed - expected) ** 2 / expected).sum()
    degrees = len(observed) - 1
    return abs(statistic - degrees) / math.sqrt(2 * degrees)


def test_cohorts_are_distinct_and_depend_on_the_round_alone():
    key = jax.random.key(0)
    cohorts = [np.asarray(sampling.cohort(key, r, 50, 20)) for r in range(3)]
    for cohort in cohorts:
        assert len(set(cohort.tolist())) == 20
        assert cohort.min() >= 0 and cohort.max() < 50
    assert not np.array_equal(cohorts[0], cohorts[1])
    np.testing.assert_array_equal(cohorts[2], sampling.cohort(key, 2, 50, 20))
    everyone = sampling.cohort(key, 0, 50, 50)
    np.testing.assert_array_equal(np.sort(everyone), np.arange(50))


def test_cohort_members_are_uniform():
    draw = jax.vmap(lambda r: sampling.cohort(jax.random.key(5), r, 20, 3))
    members = np.asarray(draw(jnp.arange(20_000))).ravel()
    assert chi_square_deviation(np.bincount(members, minlength=20)) < 4


def test_a_cohort_of_millions_reads_no_population():
    computation = jax.jit(lambda r: sampling.cohort(jax.random.key(0), r, 10**7, 100))
    largest = max(
        math.prod(var.aval.shape)
        for equation in jax.make_jaxpr(computation)(0).jaxpr.eqns
        for var in equation.outvars
    )
    assert largest <= 100
    assert len(set(np.asarray(computation(0)).tolist())) == 100


@pytest.mark.parametrize("size", [0, 51])
def test_impossible_cohort(size):
    with pytest.raises(ValueError, match=f"cohort of {size} .* 50 clients: take 1 to"):
        sampling.cohort(jax.random.key(0), 0, 50, size)


def test_with_replacement_clients_repeat():
    cohort = sampling.cohort_with_replacement(jax.random.key(0), 0, 3, 300)
    assert chi_square_deviation(np.bincount(cohort, minlength=3)) < 4


def test_by_examples_follows_sizes():
    offsets = jnp.array([0, 10, 10, 40, 100], jnp.int32)
    cohort = sampling.cohort_by_examples(
        jax.random.key(0), 0, offsets, 20_000, replace=True
    )
    share = np.bincount(cohort, minlength=4) / 20_000
    np.testing.assert_allclose(share, [0.1, 0, 0.3, 0.6], atol=0.015)


def test_by_examples_without_replacement():
    offsets = jnp.array([0, 10, 10, 40, 100], jnp.int32)
    draw = jax.vmap(
        lambda r: sampling.cohort_by_examples(jax.random.key(0), r, offsets, 2)
    )
    cohorts = np.asarray(draw(jnp.arange(8000)))
    assert (cohorts[:, 0] != cohorts[:, 1]).all()
    # P(first = i, second = j) = p_i p_j / (1 - p_i).
    share = np.mean((cohorts == [2, 3]).all(1))
    np.testing.assert_allclose(share, 0.3 * 0.6 / 0.7, atol=0.02)
    everyone = sampling.cohort_by_examples(jax.random.key(0), 0, offsets, 3)
    assert sorted(everyone.tolist()) == [0, 2, 3]


def test_reports_fail_with_the_given_probability():
    cohort = jnp.arange(10_000, dtype=jnp.int32)
    reports = sampling.reports(jax.random.key(0), cohort, 0.3)
    np.testing.assert_allclose(np.mean(reports), 0.7, atol=0.015)
    # A client's fate does not depend on who else is in the cohort.
    alone = sampling.reports(jax.random.key(0), cohort[17:18], 0.3)
    assert bool(alone[0]) == bool(reports[17])
