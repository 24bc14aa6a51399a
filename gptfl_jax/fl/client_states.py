"""What clients keep between their rounds, on the host and as arrays."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, PyTree, Shaped


class ClientStates(NamedTuple):
    """What clients keep between their rounds, for those that were in a cohort.

    A checkpoint holds `pack()`, and is read with `packed_like(known)` as its template.
    """

    rows: dict[int, PyTree]
    """Client -> row. Never changed in place: states of successive rounds share the rows
    of clients that were not in the cohort."""
    empty: PyTree
    """Row of a client that has not taken part: (False, zeros)."""

    def taken_part(self) -> list[int]:
        """The clients that have; others of the cohorts failed to report. Waits for
        the device."""
        flags = jax.device_get({client: row[0] for client, row in self.rows.items()})
        return sorted(client for client, flag in flags.items() if flag)

    def pack(self) -> "PackedClientStates":
        """As numpy arrays."""
        ids = sorted(self.rows)
        rows = [self.rows[client] for client in ids] or [self.empty]
        stacked = jax.tree.map(lambda *xs: np.stack(xs)[: len(ids)], *rows)
        return PackedClientStates(np.asarray(ids, np.int32), stacked)

    def packed_like(self, known: int) -> "PackedClientStates":
        """Arrays of the shapes that `pack` gives for so many known clients."""
        rows = jax.tree.map(lambda x: np.zeros((known, *x.shape), x.dtype), self.empty)
        return PackedClientStates(np.zeros(known, np.int32), rows)

    def unpack(self, packed: "PackedClientStates") -> "ClientStates":
        """The states that were packed."""
        rows = {
            client: jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), packed.rows)
            for i, client in enumerate(np.asarray(packed.ids).tolist())
        }
        return self._replace(rows=rows)


class PackedClientStates(NamedTuple):
    """`ClientStates` as arrays."""

    ids: Int32[np.ndarray, " known"]
    rows: PyTree[Shaped[np.ndarray, "known ..."]]


@jax.jit
def stack(rows: list[PyTree]) -> PyTree[Shaped[Array, "rows ..."]]:
    """Rows, or any trees of equal shapes, as one tree of arrays."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *rows)


# Rows that one program takes apart: each is a kernel to compile for every array.
_APART = 16


def unstack(rows: PyTree[Shaped[Array, "rows ..."]]) -> list[PyTree]:
    """The inverse of `stack`."""
    count = jax.tree.leaves(rows)[0].shape[0]
    size, each = min(count, _APART), []
    for first in range(0, count, _APART):
        # One shape for all: the last ones come with some that are there already.
        start = min(first, count - size)
        each += _some(rows, start, size)[first - start :]
    return each


@functools.partial(jax.jit, static_argnames="size")
def _some(rows: PyTree, start: Int[Array, ""], size: int) -> list[PyTree]:
    """Rows from `start` on, one by one."""
    some = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=0), rows
    )
    return [jax.tree.map(lambda x, i=i: x[i], some) for i in range(size)]
