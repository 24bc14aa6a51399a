"""Local training of a cohort: every client from the same weights, on its own examples.

Two ways to execute a cohort, with the same results:

- "packed": clients one after another in one loop, inside it a loop over that client's
  batches, both with traced bounds. Nothing is padded to the longest client, and only
  the last batch of an epoch is padded, to a quarter of the batch size. On CPUs this is
  fastest, with one device a core (`jax_num_cpu_devices`).
- "vmap": lanes of clients side by side, each step one batched computation; a client
  that is done waits, masked, for the longest of its lanes. For GPUs and TPUs.

A cohort is split over the devices of a mesh axis `clients`, longest client first. The
sums of the devices meet in one all-reduce; those of a process's CPU devices, which must
not wait for each other, when the devices are done (`gptfl_jax.devices`).

Random draws depend on the client, not on the place where it is computed:
`fold_in(round key, client)`, then on the epoch for the order of its examples and on the
step for dropout and augmentation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, PyTree, Shaped

from gptfl_jax.data.partition import FederatedData
from gptfl_jax.devices import all_along, replicate
from gptfl_jax.fl import sampling
from gptfl_jax.fl.aggregation import (
    Aggregation,
    accumulator,
    accumulator_dtype,
    add_weighted,
    scale,
)
from gptfl_jax.fl.blocks import rows_at_once
from gptfl_jax.training import Batch, Learner, Variables

AXIS = "clients"
"""Mesh axis over which cohorts are split."""


class LocalTraining(NamedTuple):
    """How a client trains, whatever it minimises.

    The learning rate of a step is that of `optimizer` times `schedule(round)` times
    `local_schedule(step / steps)`. The optimizer's state starts fresh every round.
    """

    optimizer: optax.GradientTransformation
    batch_size: int
    epochs: int = 1
    """Passes over a client's examples a round; each in an order of its own."""
    steps: int = 0
    """Steps a round in place of epochs, the same for every client; 0: epochs."""
    clip_norm: float = 0.0
    """Largest norm of a gradient, after proximal and other terms; 0: not clipped."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch; a client with less than one batch
    keeps it. Otherwise that batch is padded and masked."""
    schedule: Callable[[Array], Array] | None = None
    """round -> factor on the learning rate: `optax.cosine_decay_schedule(1.0, n)`."""
    local_schedule: Callable[[Array], Array] | None = None
    """Done share of a client's steps in this round, 0 to < 1 -> factor. The original
    GPT-FL decays by a cosine within every round: `lambda x: (1 + cos(pi x)) / 2`."""


class Context(NamedTuple):
    """What a client holds when it starts."""

    variables: Variables
    """The server's."""
    shared: Any
    """What else the server sends: say, its control variate."""
    own: Any
    """The client's own state, kept between its rounds."""


class Message(NamedTuple):
    """What a client sends back, or the mean over the clients that did."""

    update: PyTree
    """Trained minus downloaded params, or what the algorithm makes of it."""
    model_state: PyTree
    """Trained minus downloaded model state, as batch statistics."""
    extra: PyTree
    """Anything else an algorithm sends; combined by the weighted mean."""


class LocalRule(NamedTuple):
    """What a client minimises, how it steps and what it reports.

    The identity in every place is `plain_rule`, FedAvg's.
    """

    init_shared: Callable[[PyTree], Any]
    """params -> what the server keeps besides the weights."""
    init_own: Callable[[Context], Any]
    """Context (own is None) -> state of a client in its first round."""
    begin: Callable[[Context], Variables]
    """Where the client starts."""
    loss: Callable[[Variables, Batch, PRNGKeyArray, Context], tuple[Array, PyTree]]
    """(variables, batch, key, context) -> (loss, model state), differentiated."""
    correct: Callable[[PyTree, PyTree, Context], PyTree]
    """(gradient, params, context) -> the gradient to step along."""
    report: Callable[[Context, Variables, "Measured"], tuple[Message, Any]]
    """(context, trained variables, measured) -> (message, new own state)."""
    receive: Callable[[Message, Any, Array], tuple[PyTree, Any]]
    """(mean message, shared, share of the population's weight in the cohort) ->
    (update for the server optimizer, new shared)."""
    shadow: Callable[[Array], Array] | None = None
    """Asks for the gradient mass: x -> gradient of a number that starts at 0 and takes
    the client's steps with the client's optimizer. `lambda x: -1.0` moves it by
    (learning rate) x (steps) under SGD, and by more under momentum; a proximal term is
    `mu * x - 1`. Where it ends is the mass; None: not computed."""
    start_gradient: bool = False
    """Asks for the gradient over all of the client's examples where it starts."""
    sent_down: Callable[[Variables, Any], PyTree] = lambda variables, shared: (
        variables,
        shared,
    )
    """(variables, shared) -> what a client downloads."""
    sent_up: Callable[[Message], PyTree] = lambda message: message
    """What of a message a client uploads."""


class Measured(NamedTuple):
    """What a rule may ask to know of a client's training; () where it did not ask."""

    mass: Any
    """The gradient mass."""
    start_gradient: Any
    """Gradient of the mean loss over the client's examples, where it started."""


def plain_rule(learner: Learner) -> LocalRule:
    """The learner's loss, plain steps, the difference of weights as the update."""
    return LocalRule(
        init_shared=lambda params: (),
        init_own=lambda context: (),
        begin=lambda context: context.variables,
        loss=lambda variables, batch, key, context: learner.loss(variables, batch, key),
        correct=lambda gradient, params, context: gradient,
        report=lambda context, variables, measured: (
            difference(variables, context.variables),
            (),
        ),
        receive=lambda message, shared, share: (message.update, shared),
    )


def difference(variables: Variables, start: Variables) -> Message:
    """The message of FedAvg: trained minus downloaded variables."""
    params, model_state = split(variables)
    start_params, start_state = split(start)
    return Message(
        jax.tree.map(_subtract, params, start_params),
        jax.tree.map(_subtract, model_state, start_state),
        (),
    )


def _subtract(x: Array, y: Array) -> Array:
    # Half-precision weights differ by little: subtract in the accumulator's precision.
    dtype = accumulator_dtype(x.dtype)
    return x.astype(dtype) - y.astype(dtype)


def split(variables: Variables) -> tuple[PyTree, Variables]:
    """(params, model state)."""
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


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

    total: PyTree
    """sum_i d_i over the finite updates, unweighted."""
    directions: PyTree
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


def _client_keys(key, client, occurrence):
    client_key = jax.random.fold_in(jax.random.fold_in(key, client), occurrence)
    return jax.random.split(client_key)


def _shuffle(order_key, epoch):
    return sampling.Shuffle.draw(jax.random.fold_in(order_key, epoch))


def example_order(
    key: PRNGKeyArray, client: int, epoch: int, size: int, occurrence: int = 0
) -> Int32[Array, " {size}"]:
    """In which order a client takes its examples in an epoch of the round with `key`.

    Batch b is entries b * batch_size up to (b + 1) * batch_size. Training computes them
    batch by batch; this is for comparing it with other implementations.

    Args:
      occurrence: how often the client stands in the cohort before.
    """
    shuffle = _shuffle(_client_keys(key, client, occurrence)[0], epoch)
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


class Progress(NamedTuple):
    """A client in training."""

    params: PyTree
    model_state: PyTree
    optimizer_state: optax.OptState
    shadow: Any
    """(number, optimizer state): the gradient mass so far, or ()."""
    start_gradient: Any
    """As in `Measured`, or ()."""
    loss: Float[Array, ""]


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
      lanes: clients side by side under "vmap", a device; 0: all of them. Fewer lanes
        need less memory, and waste less when clients differ in size.
      row_block: under "packed", sum a step's gradient over blocks of so many rows; 0:
        whole batches; None: what suits the model, see `gptfl_jax.fl.blocks`. Less
        memory, one compiled shape and no padded rows beyond a block, for small models
        with much computation a row. The loss must be a mean over rows, without model
        state; what it draws at random differs by block.
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
    execution = _resolved(execution)
    if lanes < 0:
        raise ValueError(f"lanes {lanes}: takes 0 (all) or more")
    if row_block and (row_block < 0 or execution != "packed"):
        raise ValueError(
            f"row_block {row_block} with execution {execution!r}: takes 0 (off), or a "
            "positive number with 'packed'"
        )
    asked = _Client(rule, local, row_block or 0)
    devices = 1 if mesh is None else mesh.shape[AXIS]

    def train(
        variables: Variables,
        shared: Any,
        own: PyTree,
        data: FederatedData,
        cohort: Cohort,
        round: Int[Array, ""],
    ) -> tuple[Part, PyTree, Int32[Array, "devices slots"]]:
        if row_block and jax.tree.leaves(split(variables)[1]):
            raise ValueError("row_block: a model with batch statistics takes 0")
        size = cohort.size.shape[0] - 1
        # Only state must be laid out by slot; without it a slot is a mere number, and
        # one device may take as many small clients as the balance wants.
        stateful = bool(jax.tree.leaves(own))
        slots = math.ceil(size / devices) if stateful else size
        # What a client costs besides its rows counts as a batch and a quarter.
        costs = cohort.rows[:-1] + local.batch_size + local.batch_size // 4
        table = balance(costs, devices, slots)
        width = 1 if execution == "packed" else min(lanes or slots, slots)
        client = asked
        if row_block is None and execution == "packed":
            one = Context(variables, shared, jax.tree.map(_first, own))
            client = asked._replace(row_block=_suited_block(asked, one, data))
        positions = places = table[0]
        if mesh is not None:
            positions, places = table[lax.axis_index(AXIS)], jnp.arange(slots)
            own = jax.tree.map(lambda x: x.at[positions].get(mode="clip"), own)
        context = Context(variables, shared, own)
        *part, own = _run(
            client,
            aggregation,
            width,
            diagnostics,
            context,
            data,
            cohort,
            round,
            positions,
            places,
        )
        return Part(*part), own, table

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
    """Builds (context, data, entries, measure, extra) -> what is measured, [clients].

    For training outside of rounds: nothing is reported or combined, and the learning
    rate is the optimizer's own, without `LocalTraining.schedule`. In the context, `own`
    is [clients, ...], as are `entries` (a `Cohort`) and `extra`; `measure` is called
    with (variables at the start, trained variables, the client's part of `extra`).

    Args:
      execution: "packed" (holds the weights of one client at a time), "vmap" (of all
        of them), or "auto" for what suits the backend.

    Raises:
      ValueError: an unknown execution.
    """
    packed = _resolved(execution) == "packed"
    asked = _Client(rule, local, 0)

    def train(
        context: Context,
        data: FederatedData,
        entries: Cohort,
        measure: Callable[[Variables, Variables, Any], PyTree],
        extra: PyTree,
    ) -> PyTree:
        def finish(own, progress, more):
            trained = {"params": progress.params, **progress.model_state}
            return measure(rule.begin(context._replace(own=own)), trained, more)

        if not packed:
            progress = asked.train_lanes(context, data, entries, None)
            return jax.vmap(finish)(context.own, progress, extra)
        first = context._replace(own=jax.tree.map(_first, context.own))
        client = asked._replace(row_block=_suited_block(asked, first, data))

        def alone(of_client):
            own, entry, more = of_client
            progress = client.train(context._replace(own=own), data, entry, None)
            return finish(own, progress, more)

        return lax.map(alone, (context.own, entries, extra))

    return train


def _resolved(execution: str) -> str:
    if execution == "auto":
        return "packed" if jax.default_backend() == "cpu" else "vmap"
    if execution not in ("packed", "vmap"):
        raise ValueError(f"execution {execution!r}: takes 'auto', 'packed' or 'vmap'")
    return execution


def _run(
    client,
    aggregation,
    width,
    diagnostics,
    context,
    data,
    cohort,
    round,
    positions,
    places,
):
    """Trains the clients at `positions` of the cohort, `width` at a time.

    Slot s holds the client at positions[s], whose own state is own[places[s]].
    """
    size, slots = cohort.size.shape[0] - 1, positions.shape[0]
    local = client.local
    rate = None if local.schedule is None else local.schedule(round)
    # Relative to the cohort's total, sums stay as large as one update.
    weights = aggregation.weight(cohort.size)
    weights = weights / jnp.maximum(weights.sum(), 1)
    used = jnp.sum(positions < size)
    fill = (0, -slots % width)
    positions = jnp.pad(positions, fill, constant_values=size)
    places = jnp.pad(places, fill, constant_values=slots)
    in_context = Context(None, None, 0)

    def chunk(i, carry):
        sums, spread, stats, own = carry
        position = lax.dynamic_slice_in_dim(positions, i * width, width)
        place = lax.dynamic_slice_in_dim(places, i * width, width)
        entries = jax.tree.map(lambda x: _at(x, position), cohort)
        mine = jax.tree.map(lambda x: x.at[place].get(mode="clip"), own)
        contexts = context._replace(own=mine)
        if width == 1:
            one, entry = jax.tree.map(lambda x: x[0], (mine, entries))
            progress = client.train(context._replace(own=one), data, entry, rate)
            progress = jax.tree.map(lambda x: x[None], progress)
        else:
            progress = client.train_lanes(contexts, data, entries, rate)
        message, new, norm, finite = jax.vmap(client.finish, (in_context, 0))(
            contexts, progress
        )

        def keep(x, otherwise, flag=finite):
            flag = flag.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.where(flag, x, otherwise)

        message = jax.tree.map(lambda x: keep(x, 0), message)
        norm = keep(norm, 0)
        trained = finite & (entries.steps > 0)
        # Who failed to report goes on from what it had, not from where it would start.
        new = jax.tree.map(lambda x, y: keep(x, y, trained), new, mine)
        own = jax.tree.map(lambda x, y: x.at[place].set(y, mode="drop"), own, new)
        weight = keep(_at(weights, position), 0)
        sums = Message(
            aggregation.add(sums.update, message.update, weight, position),
            add_weighted(sums.model_state, message.model_state, weight),
            add_weighted(sums.extra, message.extra, weight),
        )
        if diagnostics:
            counts = trained.astype(norm.dtype)
            inverse = counts / jnp.where(norm > 0, norm, 1)
            spread = Spread(
                add_weighted(spread.total, message.update, counts),
                add_weighted(spread.directions, message.update, inverse),
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
        return sums, spread, stats, own

    message = jax.eval_shape(client.message, context, jax.tree.map(_first, context.own))
    sums = Message(
        aggregation.init(message.update, size),
        jax.tree.map(accumulator, message.model_state),
        jax.tree.map(accumulator, message.extra),
    )
    spread = None
    if diagnostics:
        zeros = jax.tree.map(accumulator, message.update)
        spread = Spread(zeros, zeros)
    real = jnp.zeros(size + 1, weights.dtype)
    integer = jnp.zeros(size + 1, jnp.int32)
    stats = ClientStats(real, integer, integer, real, real, real)
    chunks = lax.div(used + (width - 1), width)
    return lax.fori_loop(0, chunks, chunk, (sums, spread, stats, context.own))


def sum_over_devices(tree: PyTree) -> PyTree:
    """`psum` over the axis `clients`, in one all-reduce.

    XLA combines those of one type. Integers, counts of one client each, go as floats,
    which hold them exactly up to 2^24.
    """

    def to_float(x):
        return x.astype(_real()) if jnp.issubdtype(x.dtype, jnp.integer) else x

    total = lax.psum(jax.tree.map(to_float, tree), AXIS)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), total, tree)


def _at(x: Array, index: Array) -> Array:
    return x.at[index].get(mode="promise_in_bounds")


def _first(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)


def _suited_block(client: "_Client", context: Context, data: FederatedData) -> int:
    start = jax.eval_shape(client.start, context)
    index = jax.ShapeDtypeStruct((client.local.batch_size,), jnp.int32)
    mask = jax.ShapeDtypeStruct(index.shape, _real())
    batch = jax.eval_shape(_take, data, index, mask)

    def loss(params, batch, key, context):
        variables = {"params": params, **start.model_state}
        return client.rule.loss(variables, batch, key, context)

    if jax.tree.leaves(start.model_state):
        return 0
    return rows_at_once(loss, start.params, batch, jax.random.key(0), context)


class _Client(NamedTuple):
    """One client's training."""

    rule: LocalRule
    local: LocalTraining
    row_block: int
    """Rows whose gradient is computed at once; 0: those of a batch."""

    def start(self, context: Context) -> Progress:
        params, model_state = split(self.rule.begin(context))
        shadow = start_gradient = ()
        if self.rule.shadow is not None:
            zero = jnp.zeros(())
            shadow = zero, self.local.optimizer.init(zero)
        if self.rule.start_gradient:
            start_gradient = jax.tree.map(accumulator, params)
        state = self._optimizer().init(params)
        return Progress(
            params, model_state, state, shadow, start_gradient, jnp.zeros(())
        )

    def finish(self, context: Context, progress: Progress):
        """(message, new own state, norm of the update, whether all that is finite)."""
        variables = {"params": progress.params, **progress.model_state}
        mass = progress.shadow[0] if progress.shadow else ()
        measured = Measured(mass, progress.start_gradient)
        message, own = self.rule.report(context, variables, measured)
        # Dot products run vectorised on CPUs, sums of squares do not.
        square = _square(message.update)
        rest = square + _square((message.model_state, message.extra, own))
        return message, own, jnp.sqrt(square), jnp.isfinite(rest)

    def message(self, context: Context, own: PyTree) -> Message:
        context = context._replace(own=own)
        return self.finish(context, self.start(context))[0]

    def train(self, context, data, entry, rate) -> Progress:
        """One client by itself."""
        progress = self.start(context)
        if self.rule.start_gradient:
            progress = lax.fori_loop(
                0,
                self._passes(entry),
                lambda b, p: self._add_gradient(context, data, entry, p, b),
                progress,
            )
        steps = self._steps_of_blocks if self.row_block else self._steps_of_batches
        return steps(context, data, entry, rate, progress)

    def _steps_of_blocks(self, context, data, entry, rate, progress) -> Progress:
        """All steps in one loop: a step computes no more blocks than it has rows."""

        def step(s, progress):
            epoch = lax.div(s, entry.batches)
            shuffle = _shuffle(entry.order_key, epoch)
            rows = self._rows(entry, shuffle, s - epoch * entry.batches)
            key = jax.random.fold_in(entry.step_key, s)
            share = s.astype(_real()) / entry.steps
            return self._step(context, data, progress, *rows, key, rate, share)

        return lax.fori_loop(0, entry.steps, step, progress)

    def _steps_of_batches(self, context, data, entry, rate, progress) -> Progress:
        """Whole batches in a loop, then the rest of an epoch in the smallest bucket.

        A rest that only the last bucket holds, a whole batch, goes with the loop: one
        step less to compile.
        """
        # A model with batch statistics is large to compile, and mostly deep.
        count = 2 if jax.tree.leaves(progress.model_state) else 4
        sizes = _buckets(self.local.batch_size, count)[:-1]

        def epoch(e, progress):
            before = e * entry.batches
            left = entry.steps - before
            shuffle = _shuffle(entry.order_key, e)

            def step(b, progress, index, mask):
                key = jax.random.fold_in(entry.step_key, before + b)
                share = (before + b).astype(_real()) / entry.steps
                return self._step(
                    context, data, progress, index, mask, key, rate, share
                )

            def whole(b, progress):
                return step(b, progress, *self._rows(entry, shuffle, b))

            index, mask = self._rows(entry, shuffle, entry.whole)
            has_rest = (entry.batches > entry.whole) & (left > entry.whole)
            rest = jnp.where(has_rest, mask.sum().astype(jnp.int32), 0)
            bucket = sum((rest > size).astype(jnp.int32) for size in (0, *sizes))
            in_loop = bucket > len(sizes)
            loops = jnp.minimum(entry.whole, left) + in_loop
            progress = lax.fori_loop(0, loops, whole, progress)

            def part(size):
                return lambda p: step(entry.whole, p, index[:size], mask[:size])

            branches = [lambda p: p, *(part(size) for size in sizes)]
            return lax.switch(jnp.where(in_loop, 0, bucket), branches, progress)

        epochs = lax.div(entry.steps + entry.batches - 1, entry.batches)
        return lax.fori_loop(0, epochs, epoch, progress)

    def train_lanes(self, contexts, data, entries, rate) -> Progress:
        """Several clients side by side, every argument [lanes, ...]."""
        in_context = Context(None, None, 0)

        def one(context, entry, progress, s):
            epoch = lax.div(s, entry.batches)
            shuffle = _shuffle(entry.order_key, epoch)
            rows = self._rows(entry, shuffle, s - epoch * entry.batches)
            key = jax.random.fold_in(entry.step_key, s)
            share = s.astype(_real()) / jnp.maximum(entry.steps, 1)
            new = self._step(context, data, progress, *rows, key, rate, share)
            active = s < entry.steps
            return jax.tree.map(lambda x, y: jnp.where(active, x, y), new, progress)

        def step(carry):
            s, progress = carry
            lanes = jax.vmap(one, (in_context, 0, 0, None))
            return s + 1, lanes(contexts, entries, progress, s)

        start = jax.vmap(self.start, (in_context,), axis_size=entries.size.shape[0])
        progress = start(contexts)
        if self.rule.start_gradient:
            add = jax.vmap(self._add_gradient, (in_context, None, 0, 0, None))
            progress = lax.fori_loop(
                0,
                self._passes(entries).max(),
                lambda b, p: add(contexts, data, entries, p, b),
                progress,
            )
        longest = entries.steps.max()
        return lax.while_loop(
            lambda carry: carry[0] < longest, step, (jnp.int32(0), progress)
        )[1]

    def _optimizer(self) -> optax.GradientTransformation:
        if not self.local.clip_norm:
            return self.local.optimizer
        clip = optax.clip_by_global_norm(self.local.clip_norm)
        return optax.chain(clip, self.local.optimizer)

    def _rows(self, entry, shuffle, b):
        """Rows of batch b of an epoch, and which of them are real."""
        place = b * self.local.batch_size + jnp.arange(self.local.batch_size)
        index = entry.start + shuffle(place, entry.size)
        return index, (place < entry.size).astype(_real())

    def _passes(self, entry):
        """Batches it takes to see all examples, for a client that takes part."""
        size = jnp.int32(self.local.batch_size)
        return jnp.where(entry.steps > 0, lax.div(entry.size + (size - 1), size), 0)

    def _add_gradient(self, context, data, entry, progress, b):
        """Adds the share of batch b in the gradient over all examples."""
        place = b * self.local.batch_size + jnp.arange(self.local.batch_size)
        mask = (place < entry.size).astype(_real())
        # Numbered behind the steps: other draws than theirs.
        key = jax.random.fold_in(entry.step_key, entry.steps + b)
        # No row of another client: a NaN of theirs would pass the mask.
        index = entry.start + jnp.minimum(place, jnp.maximum(entry.size, 1) - 1)
        batch = _take(data, index, mask)
        gradient = self._gradient(context, progress, batch, key)[1]
        share = mask.sum() / jnp.maximum(entry.size, 1)
        total = jax.tree.map(
            lambda x, g: x + share.astype(x.dtype) * g.astype(x.dtype),
            progress.start_gradient,
            gradient,
        )
        return progress._replace(start_gradient=total)

    def _gradient(self, context, progress, batch, key, share=None):
        """((loss, new model state), gradient), both times `share`."""

        def loss(params):
            variables = {"params": params, **progress.model_state}
            value, model_state = self.rule.loss(variables, batch, key, context)
            if share is not None:
                value = value * share.astype(value.dtype)
            return value, model_state

        return jax.value_and_grad(loss, has_aux=True)(progress.params)

    def _gradient_of_blocks(self, context, data, progress, index, mask, key):
        """As `_gradient`, summed over blocks of rows."""
        size = self.row_block
        fill = (0, -index.shape[0] % size)
        # Padded by the client's own rows, as everywhere.
        index, mask = jnp.pad(index, fill, mode="edge"), jnp.pad(mask, fill)
        count = mask.sum()

        def add(j, carry):
            value, total = carry
            rows, real = (
                lax.dynamic_slice_in_dim(x, j * size, size) for x in (index, mask)
            )
            (part, _), gradient = self._gradient(
                context,
                progress,
                _take(data, rows, real),
                jax.random.fold_in(key, j),
                real.sum() / count,
            )
            return value + part, jax.tree.map(jnp.add, total, gradient)

        blocks = lax.div(count.astype(jnp.int32) + (size - 1), jnp.int32(size))
        zeros = jax.tree.map(jnp.zeros_like, progress.params)
        start = jnp.zeros((), progress.loss.dtype), zeros
        value, gradient = lax.fori_loop(0, blocks, add, start)
        return (value, progress.model_state), gradient

    def _step(self, context, data, progress, index, mask, key, rate, share):
        """One step on the rows of `index`; `share` of the client's steps are done."""
        if self.row_block:
            (value, model_state), gradient = self._gradient_of_blocks(
                context, data, progress, index, mask, key
            )
        else:
            batch = _take(data, index, mask)
            (value, model_state), gradient = self._gradient(
                context, progress, batch, key
            )
        if self.local.local_schedule is not None:
            factor = self.local.local_schedule(share)
            rate = factor if rate is None else rate * factor
        gradient = self.rule.correct(gradient, progress.params, context)
        params, state = _apply(
            self._optimizer(),
            gradient,
            progress.optimizer_state,
            progress.params,
            rate,
        )
        shadow = progress.shadow
        if self.rule.shadow is not None:
            x, shadow_state = shadow
            pull = jnp.asarray(self.rule.shadow(x), x.dtype)
            shadow = _apply(self.local.optimizer, pull, shadow_state, x, rate)
        loss_sum = progress.loss + value.astype(mask.dtype) * mask.sum()
        return Progress(
            params, model_state, state, shadow, progress.start_gradient, loss_sum
        )


def _take(data: FederatedData, index: Array, mask: Array) -> Batch:
    def rows(x):
        return jnp.take(x, index, axis=0, mode="clip")

    return Batch(jax.tree.map(rows, data.inputs), rows(data.labels), mask)


def _apply(optimizer, gradient, state, params, rate):
    updates, state = optimizer.update(gradient, state, params)
    if rate is not None:
        updates = scale(updates, jnp.asarray(rate))
    return optax.apply_updates(params, updates), state


def _real() -> Any:
    return jnp.zeros(()).dtype


def _square(tree: PyTree) -> Float[Array, ""]:
    return sum((jnp.vdot(x, x) for x in jax.tree.leaves(tree)), jnp.zeros(()))


def _buckets(batch_size: int, count: int) -> tuple[int, ...]:
    """Array sizes for the rest of an epoch. Four waste an eighth of a batch on average,
    two a quarter, and each costs the compilation of one more step."""
    unit = math.ceil(batch_size / count)
    return tuple(sorted({min(batch_size, unit * i) for i in range(1, count + 1)}))
