"""What clients keep, taken apart and put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.fl import client_states


@pytest.mark.parametrize("count", [1, 5, 16, 17, 37])
def test_own_states_are_taken_apart_by_one_small_program(count, caplog):
    rows = {"a": jnp.arange(2.0 * count).reshape(count, 2), "b": jnp.arange(count)}
    with jax.log_compiles(), caplog.at_level("WARNING", "jax"):
        apart = client_states.unstack(rows)
    assert caplog.text.count("Compiling jit(_some)") == 1
    assert len(apart) == count
    for i, row in enumerate(apart):
        assert row["a"].tolist() == [2.0 * i, 2.0 * i + 1] and row["b"] == i
    np.testing.assert_array_equal(client_states.stack(apart)["a"], rows["a"])
