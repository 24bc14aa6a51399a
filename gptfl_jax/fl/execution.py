"""How a cohort is executed on devices: in which loops, and where its sums meet.

Two ways, with the same results:

- "packed": clients one after another in one loop, inside it a loop over that client's
  batches (`Client.train`). On CPUs this is fastest, with one device a core
  (`jax_num_cpu_devices`).
- "vmap": lanes of clients side by side (`Client.train_lanes`). For GPUs and TPUs.

A cohort is split over the devices of a mesh axis `clients`, longest client first. The
sums of the devices meet in one all-reduce; those of a process's CPU devices, which must
not wait for each other, when the devices are done (`gptfl_jax.devices`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, PyTree

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.devices import all_along, replicate
from gptfl_jax.fl.client_rules import Context, LocalRule, Message, joined, split
from gptfl_jax.fl.cohorts import Cohort, balance
from gptfl_jax.fl.local_training import Client, LocalTraining, Progress
from gptfl_jax.fl.sums import Aggregation, accumulator, add_weighted, flat, scale
from gptfl_jax.training import Variables

AXIS = "clients"
"""Mesh axis over which cohorts are split."""

LANES = 8
"""Clients side by side on a device, where nobody says how many and a step of their
network keeps little (`Client.small`). Of 4, 8 and whole cohorts of 10 to 100 the
fastest or within 13 % of it, in five workloads on an H200 (docs/performance.md): more
wait for the longest of them, and take more memory."""


def place(data: FederatedData, mesh: Mesh | None = None) -> FederatedData:
    """Puts all examples on the device, or on each device of the mesh, once.

    Rounds read them there; data left elsewhere would be copied every round.
    """
    return replicate(data, mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def clients_mesh(devices: list[jax.Device] | None = None) -> Mesh | None:
    """A mesh of all devices (or those given) along `clients`; None for a single one."""
    return all_along(AXIS, devices)


def split_over_clients(mesh: Mesh | None) -> NamedSharding | None:
    """How a test set is split over the devices of `clients_mesh`."""
    return None if mesh is None else NamedSharding(mesh, P(AXIS))


class ClientStats(NamedTuple):
    """What happened at each client, each entry [cohort]."""

    weights: Float[Array, " cohort"]
    """Share of the cohort's weight, 0 for clients that did not count."""
    finite: Bool[Array, " cohort"]
    """Whether what it sent, and keeps for itself, was finite."""
    steps: Int[Array, " cohort"]
    rows: Float[Array, " cohort"]
    """Examples trained on, counted once an epoch."""
    loss: Float[Array, " cohort"]
    """Sum over these of the training loss, each taken at the weights of its step."""
    norm: Float[Array, " cohort"]
    """Euclidean norm of the update; 0 where it was not finite."""


class Spread(NamedTuple):
    """Sums from which the diagnostics follow."""

    total: Float[Array, " entries"]
    """sum_i d_i over the finite updates, each as one vector, unweighted."""
    directions: Float[Array, " entries"]
    """sum_i d_i / |d_i|."""


class Part(NamedTuple):
    """What one device brings home, or (after `sum_over_devices`) all of them."""

    sums: Message
    """Of the aggregation, over the device's clients."""
    spread: Spread | None
    stats: ClientStats
    """Of the whole cohort and nobody, zero for clients of other devices."""


class CohortResult(NamedTuple):
    """Combined over all clients and devices."""

    message: Message
    spread: Spread | None
    stats: ClientStats
    own: PyTree
    """New own state of each client, [cohort, ...]."""
    weight: Float[Array, ""]
    """Of the clients that counted together, as `Aggregation.weight` gives it."""


class CohortTrainer(NamedTuple):
    """A cohort's training: what each device does, and what comes of it."""

    train: Callable[..., tuple[Part, PyTree, Int32[Array, "devices slots"]]]
    """(variables, shared, own, data, cohort, round) -> (the device's part, new own
    state of its clients [slots, ...], which client of the cohort is in which slot). On
    a mesh every device calls it, inside `jax.shard_map`."""
    combine: Callable[..., CohortResult]
    """(sum of all parts, own states [devices, slots, ...], clients by slot, examples of
    each client [cohort], key) -> the result. On one device own states are [cohort, ...]
    already."""


def make_cohort_trainer(
    rule: LocalRule,
    local: LocalTraining,
    aggregation: Aggregation,
    *,
    execution: str = "auto",
    mesh: Mesh | None = None,
    lanes: int = 0,
    row_block: int | None = None,
    diagnostics: bool = True,
) -> CohortTrainer:
    """Builds the two halves of a cohort's training.

    Args:
        execution: "packed", "vmap", or "auto" for what suits the backend.
        mesh: over whose axis `clients` cohorts are split; None: one device.
        lanes: clients side by side under "vmap", a device; 0: `LANES` of a network
            whose steps keep little for their gradient, one of others. Fewer need less
            memory, and waste less when clients differ in size.
        row_block: under "packed", sum a step's gradient over blocks of so many rows; 0:
            whole batches; None: what suits the model, see `gptfl_jax.fl.microbatches`.
            Less memory, one compiled shape and no padded rows beyond a block, for small
            models with much computation a row. The loss must be a mean over rows,
            without model state; what it draws at random differs by block.
        diagnostics: whether to keep the sums of `Spread`.

    Raises:
        ValueError: an unknown execution, or local training that is none.
    """
    if local.batch_size < 1:
        raise ValueError(f"batch_size {local.batch_size}: takes 1 or more")
    if local.steps < 0 or (local.steps == 0 and local.epochs < 1):
        raise ValueError(
            f"epochs {local.epochs}, steps {local.steps}: one must be positive"
        )
    execution = resolved(execution)
    if lanes < 0:
        raise ValueError(f"lanes {lanes}: takes 0 (by itself) or more")
    if row_block and (row_block < 0 or execution != "packed"):
        raise ValueError(
            f"row_block {row_block} with execution {execution!r}: takes 0 (off), or a "
            "positive number with 'packed'"
        )
    devices = 1 if mesh is None else mesh.shape[AXIS]

    def train(
        variables: Variables,
        shared: Any,
        own: PyTree,
        data: FederatedData,
        cohort: Cohort,
        round: Int[Array, ""],
        rate: Float[Array, ""] | None = None,
    ) -> tuple[Part, PyTree, Int32[Array, "devices slots"]]:
        if row_block and jax.tree.leaves(split(variables)[1]):
            raise ValueError("row_block: a model with batch statistics takes 0")
        asked = Client(rule, local.at(rate), row_block or 0)
        size = cohort.size.shape[0] - 1
        # Only state must be laid out by slot; without it a slot is a mere number, and
        # one device may take as many small clients as the balance wants.
        stateful = bool(jax.tree.leaves(own))
        slots = math.ceil(size / devices) if stateful else size
        # What a client costs besides its rows counts as a batch and a quarter.
        costs = cohort.rows[:-1] + local.batch_size + local.batch_size // 4
        table = balance(costs, devices, slots)
        one = Context(variables, shared, jax.tree.map(_first, own))
        width, client = 1, asked
        if execution == "vmap":
            client = asked.with_its_size(one, data)
            width = lanes or (LANES if client.small else 1)
            width = min(width, slots)
        elif row_block is None:
            client = asked.with_suited_block(one, data)
        positions = places = table[0]
        if mesh is not None:
            positions, places = table[lax.axis_index(AXIS)], jnp.arange(slots)
            own = jax.tree.map(lambda x: x.at[positions].get(mode="clip"), own)
        turn = _Turn(
            client=client,
            aggregation=aggregation,
            width=width,
            diagnostics=diagnostics,
            context=Context(variables, shared, own),
            data=data,
            cohort=cohort,
            factor=None if local.schedule is None else local.schedule(round),
            positions=positions,
            places=places,
        )
        part, own = turn.run()
        return part, own, table

    def combine(
        part: Part,
        own: PyTree,
        table: Int32[Array, "devices slots"],
        sizes: Int32[Array, " cohort"],
        key: PRNGKeyArray,
    ) -> CohortResult:
        if mesh is not None:
            own = jax.tree.map(
                lambda x: (
                    jnp.zeros((*sizes.shape, *x.shape[2:]), x.dtype)
                    .at[table]
                    .set(x, mode="drop")
                ),
                own,
            )
        sums, spread, stats = part
        stats = jax.tree.map(lambda x: x[:-1], stats)
        stats = stats._replace(finite=stats.finite > 0)
        total = stats.weights.sum()
        inverse = 1 / jnp.where(total > 0, total, 1)
        weight = total * aggregation.weight(sizes).sum()
        message = Message(
            aggregation.finish(sums.update, stats.weights, key),
            scale(sums.model_state, inverse),
            scale(sums.extra, inverse),
        )
        return CohortResult(message, spread, stats, own, weight)

    return CohortTrainer(train, combine)


def make_local_trainer(
    rule: LocalRule, local: LocalTraining, *, execution: str = "auto"
) -> Callable[..., PyTree]:
    """Builds (context, data, entries, measure, extra, rate) -> what is measured,
    [clients].

    For training outside of rounds: nothing is reported or combined, and the learning
    rate is the optimizer's own, or `rate` where it takes one, without
    `LocalTraining.schedule`. In the context, `own` is [clients, ...], as are `entries`
    (a `Cohort`) and `extra`; `measure` is called with (variables at the start, trained
    variables, the client's part of `extra`).

    Args:
        execution: "packed" (holds the weights of one client at a time), "vmap" (of all
            of them), or "auto" for what suits the backend.

    Raises:
        ValueError: an unknown execution.
    """
    packed = resolved(execution) == "packed"

    def train(
        context: Context,
        data: FederatedData,
        entries: Cohort,
        measure: Callable[[Variables, Variables, Any], PyTree],
        extra: PyTree,
        rate: Float[Array, ""] | None = None,
    ) -> PyTree:
        asked = Client(rule, local.at(rate), 0)

        def finish(own, progress, more):
            trained = joined(progress.params, progress.model_state, context.variables)
            return measure(rule.begin(context._replace(own=own)), trained, more)

        first = context._replace(own=jax.tree.map(_first, context.own))
        if not packed:
            client = asked.with_its_size(first, data)
            progress = client.train_lanes(context, data, entries, None)
            return jax.vmap(finish)(context.own, progress, extra)
        client = asked.with_suited_block(first, data)

        def alone(of_client):
            own, entry, more = of_client
            progress = client.train(context._replace(own=own), data, entry, None)
            return finish(own, progress, more)

        return lax.map(alone, (context.own, entries, extra))

    return train


def resolved(execution: str) -> str:
    """The execution that "auto" stands for on this backend; the others themselves.

    Raises:
        ValueError: an unknown execution.
    """
    if execution == "auto":
        return "packed" if jax.default_backend() == "cpu" else "vmap"
    if execution not in ("packed", "vmap"):
        raise ValueError(f"execution {execution!r}: takes 'auto', 'packed' or 'vmap'")
    return execution


class _Turn(NamedTuple):
    """What one device does in a round.

    Slot s holds the client at positions[s] of the cohort, whose own state is at
    places[s] of those in the context.
    """

    client: Client
    aggregation: Aggregation
    width: int
    """Clients side by side."""
    diagnostics: bool
    context: Context
    data: FederatedData
    cohort: Cohort
    factor: Array | None
    """On the learning rate in this round."""
    positions: Int32[Array, " slots"]
    places: Int32[Array, " slots"]

    def run(self) -> tuple[Part, PyTree]:
        """Trains the clients of all slots, `width` at a time."""
        width = self.width
        size, slots = self.cohort.size.shape[0] - 1, self.positions.shape[0]
        # Relative to the cohort's total, sums stay as large as one update.
        weights = self.aggregation.weight(self.cohort.size)
        weights = weights / jnp.maximum(weights.sum(), 1)
        used = jnp.sum(self.positions < size)
        fill = (0, -slots % width)
        positions = jnp.pad(self.positions, fill, constant_values=size)
        places = jnp.pad(self.places, fill, constant_values=slots)

        def chunk(i, carry):
            slots = (
                lax.dynamic_slice_in_dim(x, i * width, width)
                for x in (positions, places)
            )
            return self._add_chunk(*slots, weights, *carry)

        start = self._empty(size, weights.dtype), self.context.own
        chunks = lax.div(used + (width - 1), width)
        return lax.fori_loop(0, chunks, chunk, start)

    def _empty(self, size, dtype) -> Part:
        """The part of no client."""
        own = jax.tree.map(_first, self.context.own)
        message = jax.eval_shape(self.client.message, self.context, own)
        sums = Message(
            self.aggregation.init(message.update, size),
            jax.tree.map(accumulator, message.model_state),
            jax.tree.map(accumulator, message.extra),
        )
        spread = None
        if self.diagnostics:
            zeros = accumulator(jax.eval_shape(flat, message.update))
            spread = Spread(zeros, zeros)
        real = jnp.zeros(size + 1, dtype)
        integer = jnp.zeros(size + 1, jnp.int32)
        stats = ClientStats(real, integer, integer, real, real, real)
        return Part(sums, spread, stats)

    def _trained(self, entries, contexts) -> Progress:
        """Of `width` clients, every leaf [width, ...]."""
        if self.width > 1:
            return self.client.train_lanes(contexts, self.data, entries, self.factor)
        own, entry = jax.tree.map(lambda x: x[0], (contexts.own, entries))
        context = contexts._replace(own=own)
        progress = self.client.train(context, self.data, entry, self.factor)
        return jax.tree.map(lambda x: x[None], progress)

    def _add_chunk(self, position, place, weights, part, own) -> tuple[Part, PyTree]:
        """Trains the clients at `position` and adds what they send to the part."""
        entries = jax.tree.map(lambda x: _at(x, position), self.cohort)
        mine = jax.tree.map(lambda x: x.at[place].get(mode="clip"), own)
        contexts = self.context._replace(own=mine)
        progress = self._trained(entries, contexts)
        in_context = Context(None, None, 0)
        finish = jax.vmap(self.client.finish, (in_context, 0))
        message, new, update, norm, finite = finish(contexts, progress)

        def keep(x, otherwise, flag=finite):
            flag = flag.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.where(flag, x, otherwise)

        message = jax.tree.map(lambda x: keep(x, 0), message)
        update, norm = keep(update, 0), keep(norm, 0)
        trained = finite & (entries.steps > 0)
        # Who failed to report goes on from what it had, not from where it would start.
        new = jax.tree.map(lambda x, y: keep(x, y, trained), new, mine)
        own = jax.tree.map(lambda x, y: x.at[place].set(y, mode="drop"), own, new)
        weight = keep(_at(weights, position), 0)
        sums, spread, stats = part
        sums = Message(
            self.aggregation.add(sums.update, message.update, weight, position),
            add_weighted(sums.model_state, message.model_state, weight),
            add_weighted(sums.extra, message.extra, weight),
        )
        if spread is not None:
            counts = trained.astype(norm.dtype)
            inverse = counts / jnp.where(norm > 0, norm, 1)
            spread = Spread(
                add_weighted(spread.total, update, counts),
                add_weighted(spread.directions, update, inverse),
            )
        report = ClientStats(
            weight, finite, entries.steps, entries.rows, progress.loss, norm
        )
        stats = jax.tree.map(
            lambda table, x: table.at[position].set(
                x.astype(table.dtype), mode="promise_in_bounds"
            ),
            stats,
            report,
        )
        return Part(sums, spread, stats), own


def sum_over_devices(tree: PyTree) -> PyTree:
    """`psum` over the axis `clients`, in one all-reduce.

    XLA combines those of one type. Integers, counts of one client each, go as floats,
    which hold them exactly up to 2^24.
    """

    real = jnp.result_type(float)

    def to_float(x):
        return x.astype(real) if jnp.issubdtype(x.dtype, jnp.integer) else x

    total = lax.psum(jax.tree.map(to_float, tree), AXIS)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), total, tree)


def _at(x: Array, index: Array) -> Array:
    return x.at[index].get(mode="promise_in_bounds")


def _first(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
