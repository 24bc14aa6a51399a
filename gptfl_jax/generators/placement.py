"""Where a generator runs, and how its programs are compiled for that place.

On GPUs and TPUs a batch is split over all devices of the process. The CPU devices of a
process are no machines of their own: they share its cores, and each operation of one of
them uses all cores anyway. There a generator runs on one device: a batch that is split
over CPU devices is filled up to a multiple of their number, each reads all the weights,
and intermediate values are held once a device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Key, PyTree, Shaped

from gptfl_jax import convolution

SPLIT = PartitionSpec("data")
EVERYWHERE = PartitionSpec()


def mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices that share a batch, along the axis `data`.

    By default all of this process, of CPU devices one.
    """
    if devices is None:
        devices = jax.local_devices()
        if devices[0].platform == "cpu":
            devices = devices[:1]
    return Mesh(np.asarray(devices), ("data",))


def sample_keys(
    key: Key[Array, "*samples"], count: int, samples: str
) -> Key[Array, " {count}"]:
    """A key for each sample of a batch.

    Args:
        key: one, from which sample i takes `fold_in(key, i)`, or one for each.
        count: samples of the batch.
        samples: what they are made from, as "prompts", for the message.

    Raises:
        ValueError: the keys are not of this number.
    """
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    if key.shape != (count,):
        raise ValueError(f"{key.shape[0]} keys for {count} {samples}")
    return key


def filled(count: int, multiple: int) -> Int[np.ndarray, " rows"]:
    """Indices 0 to count - 1, and the last again up to a multiple."""
    return np.minimum(np.arange(-(-count // multiple) * multiple), count - 1)


def split(rows: PyTree, mesh: Mesh) -> PyTree:
    """The rows of arrays over the devices; the last one again fills the last device."""

    def place(array):
        if len(array) % mesh.size:
            array = array[filled(len(array), mesh.size)]
        return jax.device_put(array, NamedSharding(mesh, SPLIT))

    return jax.tree.map(place, rows)


def part_size(count: int, most: int) -> int:
    """The largest part of at most `most` rows that divides `count` rows evenly."""
    return next(n for n in range(min(most, count), 0, -1) if count % n == 0)


def in_parts(
    run: Callable[[Array], Array], rows: Array, most: int
) -> Shaped[Array, "rows ..."]:
    """`run(rows)`, on a CPU by parts of at most `most` rows, one after the other.

    What a part needs between its inputs and its outputs is free for the next one.
    """
    count = len(rows)
    size = part_size(count, most)
    if size == count or jax.default_backend() != "cpu":
        return run(rows)
    # Programs in flight would run side by side, each with memory of its own.
    parts = [
        jax.block_until_ready(run(rows[first : first + size]))
        for first in range(0, count, size)
    ]
    return jnp.concatenate(parts)


def compiled(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: tuple[Any, ...],
    out_specs: Any = SPLIT,
    donate: Sequence[int] = (),
) -> Callable[..., Any]:
    """`function` as a program that each device runs on its share of the batch.

    Args:
        function: has no convolution inside a loop of XLA's where it runs on a CPU.
        mesh: of `mesh`.
        in_specs: how each argument lies on the devices.
        out_specs: how the results do.
        donate: numbers of the arguments whose memory the results may take.
    """

    @functools.wraps(function)
    def traced(*arguments):
        with convolution.outside_loops():
            return function(*arguments)

    mapped = jax.shard_map(
        traced, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)
