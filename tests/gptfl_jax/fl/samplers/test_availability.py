"""Cohorts of those that can be reached."""

import jax
import jax.numpy as jnp
import pytest

from gptfl_jax.fl.samplers.availability import Availability


def test_availability_trace():
    table = jnp.array([[True, False, True, True], [False, True, False, False]])
    trace = Availability(table)
    for round in (0, 2, 4):
        cohort = trace.cohort(jax.random.key(0), round, 3)
        assert sorted(cohort.tolist()) == [0, 2, 3]
    assert trace.cohort(jax.random.key(0), 1, 1).tolist() == [1]
    with pytest.raises(ValueError, match="from 1 available clients"):
        trace.cohort(jax.random.key(0), 1, 2)
