"""Cohorts of those clients that can be reached."""

import functools
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from gptfl_jax import rules, user_files
from gptfl_jax.fl.sampling import Sampler, cohort_of_available

# A million clients over a thousand rounds.
_MOST_TRACE_BYTES = 2**30


class Availability(NamedTuple):
    """Who can be reached when: row t of `table` holds in rounds t, t + period, ..."""

    table: Bool[Array, "period clients"]

    def cohort(
        self, key: PRNGKeyArray, round: int, size: int
    ) -> Int32[Array, " {size}"]:
        """`size` different clients of those available in this round, uniformly.

        O(clients): the table is read. Not for use inside jit.
        """
        row = self.table[round % self.table.shape[0]]
        available = jnp.flatnonzero(row).astype(jnp.int32)
        return cohort_of_available(key, round, available, size)


def availability(num_clients: int, cohort_size: int, file: rules.Name) -> Sampler:
    """Availability: different clients of those that a trace says can be reached.

    Args:
        num_clients: how many there are.
        cohort_size: how many to draw.
        file: the trace, a .npy of booleans [period, clients]; round r draws from the
            clients that are True in row r modulo period.

    Raises:
        ValueError: a trace that cannot be read, does not fit the clients, or leaves too
            few of them in some round.
    """
    path = pathlib.Path(file).expanduser()
    try:
        table = user_files.read_array(path, _MOST_TRACE_BYTES)
    except user_files.Unreadable as error:
        raise ValueError(
            f"file {str(path)!r} {error.reason}: takes a .npy of booleans "
            "[period, clients]"
        ) from None
    fits = table.dtype == bool and table.ndim == 2
    if not fits or len(table) == 0 or table.shape[1] != num_clients:
        found = f"{table.dtype} {table.shape}" if fits else "something else"
        raise ValueError(
            f"file {str(path)!r} holds {found}: takes booleans [period, "
            f"{num_clients}], a column for each client"
        )
    available = table.sum(1)
    if available.min() < cohort_size:
        raise ValueError(
            f"file {str(path)!r}: row {available.argmin()} has {available.min()} "
            f"clients, fewer than cohort_size = {cohort_size}"
        )
    return functools.partial(Availability(jnp.asarray(table)).cohort, size=cohort_size)
