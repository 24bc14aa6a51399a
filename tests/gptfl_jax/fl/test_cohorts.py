import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import cohorts
from gptfl_jax.fl.local_training import LocalTraining

describe = jax.jit(cohorts.describe, static_argnums=3)


def test_balance_deals_the_most_expensive_first():
    costs = jnp.array([3, 9, 1, 4, 8])
    table = cohorts.balance(costs, devices=2, slots=5)
    # 9 | 8, then 4 to the 8, 3 to the 9, 1 to 12 = 12 (the first).
    np.testing.assert_array_equal(table, [[1, 0, 2, 5, 5], [4, 3, 5, 5, 5]])


def test_balance_gives_no_device_more_than_its_slots():
    costs = jnp.array([100, 1, 1, 1, 1, 1])
    table = cohorts.balance(costs, devices=2, slots=3)
    assert sorted(table.ravel().tolist()) == [0, 1, 2, 3, 4, 5]
    alone = cohorts.balance(costs, devices=2, slots=6)
    np.testing.assert_array_equal(alone[0], [0, 6, 6, 6, 6, 6])


def test_balance_with_more_devices_than_clients():
    table = cohorts.balance(jnp.array([1, 2]), devices=4, slots=2)
    np.testing.assert_array_equal(table[:2], [[1, 2], [0, 2]])
    assert (table[2:] == 2).all()


@pytest.mark.parametrize(
    ("local", "steps", "rows"),
    [
        (LocalTraining(optax.sgd(1.0), 8, epochs=2), [0, 2, 2, 6], [0, 2, 16, 34]),
        (
            LocalTraining(optax.sgd(1.0), 8, epochs=2, drop_last=True),
            *([0, 2, 2, 4], [0, 2, 16, 32]),
        ),
        # Passes over 17 examples are 8 + 8 + 1: four steps see 8 more.
        (LocalTraining(optax.sgd(1.0), 8, steps=4), [0, 4, 4, 4], [0, 4, 32, 25]),
    ],
)
def test_steps_and_rows_of_a_client(local, steps, rows):
    offsets = jnp.array([0, 0, 1, 9, 26])
    data = FederatedData(jnp.zeros((26, 1)), jnp.zeros(26, jnp.int32), offsets)
    cohort = describe(data, jnp.arange(4, dtype=jnp.int32), jax.random.key(0), local)
    # The entry behind the last stands for nobody.
    np.testing.assert_array_equal(cohort.steps, [*steps, 0])
    np.testing.assert_array_equal(cohort.rows, [*rows, 0])


def test_a_client_twice_gets_two_keys_and_its_first_is_that_of_once():
    data = FederatedData(
        jnp.zeros((6, 1)), jnp.zeros(6, jnp.int32), jnp.array([0, 2, 4, 6])
    )
    local = LocalTraining(optax.sgd(1.0), 8)
    key = jax.random.key(0)
    twice = describe(data, jnp.array([2, 0, 2], jnp.int32), key, local)
    once = describe(data, jnp.array([2], jnp.int32), key, local)
    words = jax.random.key_data(twice.order_key)
    assert (words[0] == jax.random.key_data(once.order_key)[0]).all()
    assert (words[0] != words[2]).any()


def test_example_order_is_a_permutation_that_changes_with_the_epoch():
    key = jax.random.key(0)
    first, second = (cohorts.example_order(key, 3, epoch, 20) for epoch in (0, 1))
    np.testing.assert_array_equal(np.sort(first), np.arange(20))
    assert (first != second).any()
