"""Devices of a mesh: arrays on each of them, and sums of what they computed.

Accelerators, and processes, add in collective operations. The CPU devices of one
process must not: they are threads of one pool. A device that waits in a collective
keeps a thread, and with several programs in flight the threads that would finish the
others are all waiting; and XLA ends the process when one device is a minute behind. So
there (`apart`) a program has no collective. What each device computed is copied to the
first device of its process, its leader, and added there by a program of its own, which
starts when its inputs are ready: nothing waits in a thread. What processes have to add
is left to a collective among the leaders, one device a process, where nobody shares a
pool. That too gives up, after half an hour: so they meet before it, where each waits
for the others as long as they live.

Of a single process, all functions return without waiting for the devices.
"""

import collections
import functools
import itertools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped

# XLA uses an array in place, on every CPU device, if it begins at such an address.
_ALIGNMENT = 64

# How long a process waits for the slowest one: longer than any run.
_PATIENCE_MS = 30 * 24 * 3600 * 1000
# Every meeting has a number of its own; all processes come to the same ones in turn.
_meetings = itertools.count()


def all_along(axis: str, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """A mesh of all devices (or those given) along one axis; None for a single one."""
    devices = jax.devices() if devices is None else devices
    if len(devices) == 1:
        return None
    return jax.make_mesh(
        (len(devices),), (axis,), (jax.sharding.AxisType.Auto,), devices=devices
    )


def for_steps(batch_size: int) -> Mesh:
    """Devices, along the axis `data`, that share the batch of a central training step.

    As many as it has rows for; on a CPU one a process. A step ends with a sum over all
    devices, and batch statistics need more of them within it; one CPU device works on
    all cores in each of its operations.
    """
    everyone = Mesh(np.array(jax.devices()), ("data",))
    if jax.default_backend() == "cpu":
        return leaders(everyone)
    of_process = max(batch_size // jax.process_count(), 1)
    chosen, taken = [], collections.Counter()
    for device in everyone.devices.flat:
        taken[device.process_index] += 1
        if taken[device.process_index] <= of_process:
            chosen.append(device)
    return Mesh(np.array(chosen), ("data",))


def apart(mesh: Mesh | None) -> bool:
    """Whether the mesh is of CPU devices, which do not meet in a collective."""
    if mesh is None or mesh.size == 1:
        return False
    return mesh.local_devices[0].platform == "cpu"


def wait_for_processes(moment: str) -> None:
    """Waits until every process has come here; one that died ends the others too."""
    # Deferred: it takes a second to import, and only several processes need it.
    from orbax.checkpoint import multihost

    key = f"{moment} {next(_meetings)}"
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=_PATIENCE_MS)


@functools.cache
def leaders(mesh: Mesh) -> Mesh:
    """The first device of each process, along the mesh's axis."""
    first: dict[int, jax.Device] = {}
    for device in mesh.devices.flat:
        first.setdefault(device.process_index, device)
    return Mesh(np.array(list(first.values())), mesh.axis_names)


class Room(NamedTuple):
    """Whether examples may lie on the devices."""

    enough: bool
    """The same on every process."""
    need: int
    """Bytes of the examples on a device."""
    free: int
    """Bytes free on this process's fullest device."""

    def words(self, how: str) -> str:
        """That examples are kept `how`, and why."""
        need, free = self.need / 1e6, self.free / 1e6
        return f"examples are {how}: {need:,.1f} MB, where {free:,.1f} MB are free"


def room_for(tree: PyTree, mesh: Mesh | None, shares: int = 1) -> Room:
    """Whether the devices have room for examples: they may take half of what is free.

    On a CPU, rows in files may take a sixteenth: in memory they would be there twice,
    as the system keeps what was read of a file.

    Args:
        tree: arrays, or what stands for them as rows in files do.
        mesh: of the devices; None: one.
        shares: into so many parts the examples are split, for a device each.
    """
    need = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) // shares
    free = free_memory(mesh)
    share = 16 if in_files(tree) and jax.default_backend() == "cpu" else 2
    enough = need <= free // share
    if jax.process_count() > 1:
        # Processes whose memory differs must compute the same.
        enough = bool(np.all(multihost_utils.process_allgather(np.bool_(enough))))
    return Room(enough, need, free)


def in_files(tree: PyTree) -> bool:
    """Whether a leaf is no array but stands for one, as rows in files do."""
    return any(_stands_for_an_array(leaf) for leaf in jax.tree.leaves(tree))


def _stands_for_an_array(leaf) -> bool:
    numpy = (np.ndarray, np.generic)
    return hasattr(leaf, "__array__") and not isinstance(leaf, (jax.Array, *numpy))


def free_memory(mesh: Mesh | None = None) -> int:
    """Bytes free on the fullest of this process's devices.

    Where a device does not know, as a CPU, its share of the machine's memory.
    """
    devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
    free = []
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            free.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
        else:
            free.append(machine_memory() // len(devices))
    return min(free)


def machine_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree[Array]:
    """Puts a tree on each device of a mesh; every process holds the whole tree.

    The CPU devices of a process share one copy of what comes from numpy. Rows in files
    are read some at a time where the devices have memory of their own.
    """
    if mesh is None:
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.device_put(jax.tree.map(functools.partial(_read, to=one), tree))
    sharding = NamedSharding(mesh, P())
    if apart(mesh):
        at_home = NamedSharding(leaders(mesh), P())
        if all(_is_at(leaf, at_home) for leaf in jax.tree.leaves(tree)):
            return to_everywhere(tree, mesh)

    def put(leaf):
        leaf = _read(leaf, sharding)
        if getattr(leaf, "sharding", None) == sharding:
            return leaf
        if apart(mesh) and not isinstance(leaf, jax.Array):
            leaf = _aligned(np.asarray(leaf))
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        # device_put would send it to all processes, to compare it.
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(put, tree)


def _read(leaf, to: jax.sharding.Sharding):
    """Rows in files as an array: of numpy or, some at a time, on the devices."""
    if not _stands_for_an_array(leaf):
        return leaf
    if jax.default_backend() == "cpu" or not to.is_fully_addressable:
        return np.asarray(leaf)
    return put_in_parts(leaf, to)


def put_in_parts(
    rows, to: jax.sharding.Sharding, most_bytes: int = 1 << 28
) -> Shaped[Array, "rows ..."]:
    """Puts rows in files on devices, each of which gets all, without all in memory.

    Args:
        rows: what has `shape` and `dtype`, and whose slices are arrays.
        most_bytes: of the rows that are in memory at a time.
    """
    count = len(rows)
    some = min(count, max(1, most_bytes // max(1, rows.nbytes // max(1, count))))
    result = jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=to)(
        rows.shape, rows.dtype
    )
    for start in range(0, count, some):
        start = min(start, count - some)  # the last reach back: one shape
        part = jax.device_put(rows[start : start + some], to)
        result = _write(result, part, np.int32(start))
    return result


@functools.partial(jax.jit, donate_argnums=0)
def _write(whole, part, start):
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)


def _is_at(leaf, sharding: NamedSharding) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(
        sharding, leaf.ndim
    )


def zeros_in_place(shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
    """An array to fill that CPU devices will use where it is, without a copy.

    Once it is on a device, it must not be changed any more.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _aligned(x: np.ndarray) -> np.ndarray:
    """A copy that nobody changes and all devices of a CPU can use.

    Or the array itself, where it is one.
    """
    if not x.flags.writeable and not x.ctypes.data % _ALIGNMENT:
        return x
    copy = zeros_in_place(x.shape, x.dtype)
    copy[...] = x
    return copy


def sum_by_process(tree: PyTree[Array, "T"], mesh: Mesh) -> PyTree[Array, "T"]:
    """[devices, ...] split over the mesh -> [processes, ...] split over its leaders.

    Of several processes, all have their part when this returns.
    """
    sums = _bring(tree, mesh, _add)
    if leaders(mesh).size > 1:
        jax.block_until_ready(sums)
        wait_for_processes("sums")
    return sums


def add_up(tree: PyTree[Array, "T"], mesh: Mesh) -> PyTree[Array, "T"]:
    """[devices, ...] split over the mesh -> the sum over all, on the leaders."""
    return _add_processes(sum_by_process(tree, mesh), leaders(mesh))


def gather_by_process(tree: PyTree[Array, "T"], mesh: Mesh) -> PyTree[Array, "T"]:
    """[devices, ...] split over the mesh -> the same, split over its leaders."""
    return _bring(tree, mesh, _concatenate)


def from_everywhere(tree: PyTree[Array, "T"], mesh: Mesh) -> PyTree[Array, "T"]:
    """What is on every device -> the leaders' part of it; copies nothing."""
    to = leaders(mesh)
    leader = to.local_devices[0]

    def part(leaf):
        shard = next(s for s in leaf.addressable_shards if s.device == leader)
        return _assembled(leaf.shape, to, P(), [shard.data])

    return jax.tree.map(part, tree)


def to_everywhere(tree: PyTree[Array, "T"], mesh: Mesh) -> PyTree[Array, "T"]:
    """What is on the leaders -> on every device of their processes."""
    leaves, structure = jax.tree.flatten(tree)
    own = [leaf.addressable_shards[0].data for leaf in leaves]
    copies = [jax.device_put(own, device) for device in mesh.local_devices]
    placed = [
        _assembled(leaf.shape, mesh, P(), parts)
        for leaf, *parts in zip(leaves, *copies, strict=True)
    ]
    return jax.tree.unflatten(structure, placed)


def _bring(tree, mesh, join):
    to = leaders(mesh)
    leader = to.local_devices[0]
    leaves, structure = jax.tree.flatten(tree)
    by_device = []
    for device in mesh.local_devices:
        parts = [
            next(s.data for s in leaf.addressable_shards if s.device == device)
            for leaf in leaves
        ]
        by_device.append(jax.device_put(parts, leader))
    joined = join(by_device)
    processes = to.devices.size
    brought = [
        _assembled((processes * x.shape[0], *x.shape[1:]), to, P(to.axis_names[0]), [x])
        for x in joined
    ]
    return jax.tree.unflatten(structure, brought)


def _assembled(shape, mesh: Mesh, spec: P, parts: Sequence[Array]) -> Array:
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_single_device_arrays(shape, sharding, list(parts))


@jax.jit
def _add(by_device: list[list[Array]]) -> list[Array]:
    return [functools.reduce(jnp.add, parts) for parts in zip(*by_device, strict=True)]


@jax.jit
def _concatenate(by_device: list[list[Array]]) -> list[Array]:
    return [jnp.concatenate(parts) for parts in zip(*by_device, strict=True)]


@functools.partial(jax.jit, static_argnames="mesh")
def _add_processes(tree, mesh):
    total = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), tree)
    return jax.lax.with_sharding_constraint(total, NamedSharding(mesh, P()))
