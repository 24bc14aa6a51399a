"""Who trains in a round: each client's examples, keys and steps, and on which device.

Random draws depend on the client, not on the place where it is computed:
`fold_in(round key, client)`, then on the epoch for the order of its examples and on the
step for dropout and augmentation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Int32, PRNGKeyArray, Shaped

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl.local_training import LocalTraining, order_of_epoch


class Cohort(NamedTuple):
    """The clients of a round, or (all entries scalars) one of them.

    The last entry stands for nobody: an empty lane or slot.
    """

    order_key: Shaped[PRNGKeyArray, " entries"]
    """For the order of the client's examples."""
    step_key: Shaped[PRNGKeyArray, " entries"]
    """For what its loss draws, as augmentation and dropout."""
    start: Int32[Array, " entries"]
    """First row of the client's examples."""
    size: Int32[Array, " entries"]
    """Examples of the client; 0: it does not take part."""
    whole: Int32[Array, " entries"]
    """Whole batches an epoch."""
    batches: Int32[Array, " entries"]
    """Batches an epoch, at least 1."""
    steps: Int32[Array, " entries"]
    """Steps in this round."""
    rows: Int32[Array, " entries"]
    """Examples over all these steps."""


def describe(
    data: FederatedData,
    cohort: Int32[Array, " cohort"],
    key: PRNGKeyArray,
    local: LocalTraining,
    taking_part: Bool[Array, " cohort"] | None = None,
) -> Cohort:
    """Looks up the clients' rows, gives each its keys, and counts its steps.

    A client that is in the cohort twice gets other keys the second time.
    """
    # How often the client came before, from the ranks of a stable sort.
    order = jnp.argsort(cohort, stable=True)
    ordered, rank = cohort[order], jnp.arange(cohort.shape[0])
    new = jnp.diff(ordered, prepend=-1) != 0
    earlier = rank - lax.cummax(jnp.where(new, rank, 0))
    earlier = jnp.zeros_like(rank).at[order].set(earlier)

    def entry(client, occurrence, takes_part, start):
        order_key, step_key = _client_keys(key, client, occurrence)
        size = data.offsets[client + 1] - data.offsets[client]
        size = jnp.where(takes_part, size, 0)
        return Cohort(order_key, step_key, start, size, *_schedule(local, size))

    if taking_part is None:
        taking_part = jnp.ones(cohort.shape, bool)
    nobody = jnp.zeros(1, jnp.int32)
    return jax.vmap(entry)(
        jnp.append(cohort, nobody),
        jnp.append(earlier.astype(jnp.int32), nobody),
        jnp.append(taking_part, nobody > 0),
        jnp.append(data.begins(cohort), nobody),
    )


def _schedule(local, size):
    """(whole batches, batches, steps, rows) of a client with `size` examples."""
    # lax.div and rem: `//` also compiles what negative numbers would need.
    batch_size = jnp.int32(local.batch_size)
    whole, rest = lax.div(size, batch_size), lax.rem(size, batch_size)
    has_rest = rest > 0
    if local.drop_last:
        has_rest &= whole == 0
    batches = whole + has_rest
    steps = jnp.int32(local.steps) if local.steps else local.epochs * batches
    steps = jnp.where(size > 0, steps, 0)
    a_pass = whole * batch_size + jnp.where(has_rest, rest, 0)
    batches = jnp.maximum(batches, 1)
    epochs, more = lax.div(steps, batches), lax.rem(steps, batches)
    return whole, batches, steps, epochs * a_pass + more * batch_size


def steps_of(
    local: LocalTraining, sizes: Int[Array, " clients"]
) -> Int32[Array, " clients"]:
    """Steps a round of clients with so many examples."""
    return jax.vmap(lambda size: _schedule(local, size)[2])(sizes)


def _client_keys(key, client, occurrence):
    client_key = jax.random.fold_in(jax.random.fold_in(key, client), occurrence)
    return jax.random.split(client_key)


def example_order(
    key: PRNGKeyArray, client: int, epoch: int, size: int, occurrence: int = 0
) -> Int32[Array, " {size}"]:
    """In which order a client takes its examples in an epoch of the round with `key`.

    Batch b is entries b * batch_size up to (b + 1) * batch_size. Training computes them
    batch by batch; this is for comparing it with other implementations.

    Args:
        occurrence: how often the client stands in the cohort before.
    """
    shuffle = order_of_epoch(_client_keys(key, client, occurrence)[0], epoch)
    return shuffle(jnp.arange(size), size)


def balance(
    costs: Int[Array, " cohort"], devices: int, slots: int
) -> Int32[Array, "{devices} {slots}"]:
    """Deals clients to devices, the most expensive first, always to the least loaded.

    Longest-processing-time-first; no device is given more than `slots` clients.

    Returns:
        Positions in the cohort, in falling order of cost; `cohort` marks an empty slot.
    """
    size = costs.shape[0]

    def deal(carry, position):
        load, count, table = carry
        device = jnp.argmin(jnp.where(count < slots, load, jnp.iinfo(load.dtype).max))
        table = table.at[device, count[device]].set(position)
        load = load.at[device].add(costs[position])
        return (load, count.at[device].add(1), table), None

    empty = jnp.full((devices, slots), size, jnp.int32)
    zeros = jnp.zeros(devices, jnp.int32)
    order = jnp.argsort(-costs, stable=True).astype(jnp.int32)
    if devices == 1:
        return order[None]
    return lax.scan(deal, (zeros, zeros, empty), order)[0][2]
