"""Data larger than the device: only the rows of a cohort go there, a round ahead.

The host holds all examples, in memory or in a file (`np.memmap`). While the device
computes a round, a thread gathers the rows of the next cohort and sends them. What a
round computes is what it computes with all data on the device (`execution.place`), bit
for bit: numbers, sizes and keys of the clients stay those of the population, and
`FederatedData.starts` says where in the rows sent each client of the cohort begins.

A round costs O(rows of its cohort), however many clients and rows there are.
"""

import collections
import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.devices import replicate, zeros_in_place

Cohort = Int32[Array | np.ndarray, " cohort"]


def stream(
    data: FederatedData, cohorts: Iterable[Cohort], mesh: Mesh | None = None
) -> Generator[tuple[Cohort, FederatedData], Any, None]:
    """Sends the rows of one cohort after another to the device.

        rows = stream(data, cohorts)
        for cohort, data in rows:
            state, metrics = algorithm.round(state, data, cohort, key)

    The device holds the rows of two cohorts, one in use and one to come. Whoever starts
    a round without waiting for the one before uses two at once, and says so by
    `rows.send(metrics)` in place of `next(rows)`: the third is sent when `metrics`, or
    whatever arrays of the last round, have been computed.

    A client that stands in a cohort twice is sent once. Rows are padded to a few
    lengths (`capacities`), each of which compiles a round once.

    Args:
        data: on the host. The leaves of its inputs are numpy arrays or memory maps.
        cohorts: of the rounds to come; they are drawn two ahead.
        mesh: all devices of it get the rows, each process sending to its own; None: one
            device.

    Yields:
        The cohort and its data, which are deleted when the next are asked for. Closing
        the generator stops the thread.

    Raises:
        Exception: what reading or sending the rows raised, when they are asked for.
    """
    send = _sender(data, mesh)
    cohorts = iter(cohorts)
    # What draws a cohort on the device waits there for the rounds started before. So
    # one more is drawn than sent: the thread need not wait as well.
    drawn = collections.deque(itertools.islice(cohorts, 1))
    coming = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1, "cohort-rows") as thread:

        def send_next(used: FederatedData | None = None, until: Any = None) -> None:
            if drawn:
                cohort = drawn.popleft()
                coming.append((cohort, thread.submit(send, cohort, used, until)))
            drawn.extend(itertools.islice(cohorts, 1))

        send_next()
        send_next()
        while coming:
            cohort, sent = coming.popleft()
            rows = sent.result()
            until = yield cohort, rows
            send_next(rows, until)


def capacities(
    sizes: Int[np.ndarray, " clients"], cohort_size: int
) -> Int[np.ndarray, " capacities"]:
    """Lengths to which the rows of a cohort are padded: to the first that holds them.

    The first is three standard deviations above the mean of a uniformly drawn cohort.
    The others double it, and the last holds the largest clients: it is the only one
    where that is no more than double.
    """
    members = min(cohort_size, len(sizes))
    most = max(int(np.partition(sizes, -members)[-members:].sum()), 1)
    usual = members * sizes.mean() + 3 * math.sqrt(members) * sizes.std()
    usual = max(usual, 1)
    result = []
    while 2 * usual < most:
        result.append(math.ceil(usual))
        usual *= 2
    return np.array([*result, most])


def _sender(
    data: FederatedData, mesh: Mesh | None
) -> Callable[[Cohort, FederatedData | None, Any], FederatedData]:
    """The function that the thread runs: (cohort, used, until) -> its data."""
    offsets = np.asarray(data.offsets)
    offsets_there = replicate(offsets, mesh)
    sizes = np.diff(offsets)
    capacities_of = functools.cache(functools.partial(capacities, sizes))
    # The setting of a thread is its own.
    x64 = jax.config.jax_enable_x64

    def send(cohort: Cohort, used: FederatedData | None, until: Any) -> FederatedData:
        members = np.asarray(cohort)
        begins, rows = {}, 0
        for client in members.tolist():
            if client not in begins:
                begins[client] = rows
                rows += int(sizes[client])
        lengths = capacities_of(len(members))
        capacity = int(lengths[np.searchsorted(lengths, rows)])

        def gather(x: np.ndarray) -> np.ndarray:
            # Fresh arrays: on a CPU the device may use them in place.
            result = zeros_in_place((capacity, *x.shape[1:]), x.dtype)
            for client, begin in begins.items():
                of_client = x[offsets[client] : offsets[client + 1]]
                result[begin : begin + len(of_client)] = of_client
            return result

        gathered = (
            jax.tree.map(gather, data.inputs),
            gather(data.labels),
            np.array([begins[client] for client in members.tolist()], np.int32),
        )
        jax.block_until_ready(until)
        if used is not None:
            for x in jax.tree.leaves(used._replace(offsets=None)):
                x.delete()
        with jax.enable_x64(x64):
            inputs, labels, starts = replicate(gathered, mesh)
        return FederatedData(inputs, labels, offsets_there, starts)

    return send
