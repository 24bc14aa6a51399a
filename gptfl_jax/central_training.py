"""Central training, an epoch at a time."""

import collections
import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Int32, PRNGKeyArray, PyTree, Shaped

from gptfl_jax import devices, planning, training
from gptfl_jax.prefetch import ahead

# Folded into the key; the numbers are part of what a seed means.
_INITIAL_WEIGHTS, _ORDER, _STEPS = range(3)

# Bytes that are sent at a time, but for a single step that takes more.
_MOST_SENT = 1 << 28
# Threads that read rows: most of the time they wait for a disk, or copy.
_READERS = 4


class Epoch(NamedTuple):
    """What an epoch leaves."""

    number: int
    """From 1."""
    state: training.TrainState
    """Overwritten by the next epoch: copy what you keep."""
    loss: float
    """Mean over the examples, each at the step that used it."""
    waited_s: float = 0.0
    """Seconds in which the devices had nothing to do until examples came."""


def initial_state(
    learner: training.Learner,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
    batch_size: int,
    variables: training.Variables | None = None,
) -> training.TrainState:
    """Variables and optimizer state to begin with, on the devices that `fit` uses.

    Args:
        variables: None: fresh ones.
    """
    key_data = np.asarray(jax.random.key_data(key))

    def state(variables):
        given = learner._replace(init=lambda _: variables)
        return training.init_state(
            learner if variables is None else given,
            optimizer,
            _purpose(key_data, _INITIAL_WEIGHTS),
        )

    replicated = NamedSharding(devices.for_steps(batch_size), P())
    return jax.jit(state, out_shardings=replicated)(variables)


def fit(
    learner: training.Learner,
    optimizer: optax.GradientTransformation,
    state: training.TrainState,
    inputs: PyTree[Shaped[Any, "examples ..."]],
    labels: Int[np.ndarray, " examples"],
    key: PRNGKeyArray,
    epochs: int,
    batch_size: int,
    *,
    done: int = 0,
    streamed: bool = False,
    before_step: Callable[[], None] = lambda: None,
    after_steps: Callable[[int], None] = lambda count: None,
) -> Iterator[Epoch]:
    """Trains on the examples in an order drawn for each epoch.

    Args:
        state: to begin with, as `initial_state` gives it; it is overwritten.
        key: of orders, augmentation and dropout.
        batch_size: examples a step, over all devices; the last of an epoch has the
            rest.
        done: epochs that `state` has behind it.
        streamed: the examples stay on the host, in memory or in files, and a thread
            sends those of the steps to come. The result is the same.
        before_step: called before each step that is sent to the device; may raise.
        after_steps: called with the number of steps sent.

    Yields:
        Each epoch when it is over.
    """
    num_examples = len(labels)
    steps = math.ceil(num_examples / batch_size)
    mesh = devices.for_steps(batch_size)
    put = functools.partial(devices.replicate, mesh=mesh)
    order, advance, advance_on = make_epoch(
        learner,
        optimizer,
        np.asarray(jax.random.key_data(key)),
        num_examples,
        batch_size,
        NamedSharding(mesh, P("data")),
    )
    chunk = _steps_at_once(steps)
    if streamed:
        chunk = min(chunk, _steps_sent(training.example_of(inputs), batch_size))
        yield from _epochs_streamed(
            *(order, advance_on, state, inputs, labels, range(done, epochs), mesh),
            *(range(0, steps, chunk), before_step, after_steps),
        )
        return
    examples = put((inputs, labels))
    for epoch in range(done, epochs):
        rows = order(np.int32(epoch))
        carry = state, put(np.float32(0))
        for first in range(0, steps, chunk):
            before_step()
            count = min(chunk, steps - first)
            carry = advance(carry, examples, rows, np.int32(first), count)
            after_steps(count)
        state, total = carry
        yield Epoch(epoch + 1, state, float(total) / num_examples)


def _epochs_streamed(
    order: Callable,
    advance_on: Callable,
    state: training.TrainState,
    inputs: PyTree,
    labels: Int[np.ndarray, " examples"],
    epochs: range,
    mesh: Mesh,
    firsts: range,
    before_step: Callable[[], None],
    after_steps: Callable[[int], None],
) -> Iterator[Epoch]:
    """`fit` with a thread that sends the examples, from each of `firsts` to the next.

    The devices hold those of two computations that were started, and of two to come.
    """

    def tables():
        for epoch in epochs:
            yield from np.split(np.asarray(order(np.int32(epoch))), firsts[1:])

    with contextlib.ExitStack() as stack:
        readers = stack.enter_context(ThreadPoolExecutor(_READERS, "rows"))
        send = functools.partial(_send, inputs, labels, mesh=mesh, readers=readers)
        batches = stack.enter_context(contextlib.closing(ahead(send, tables())))
        for epoch in epochs:
            carry = state, devices.replicate(np.float32(0), mesh)
            started, waited = collections.deque(), 0.0
            for coming in itertools.islice(batches, len(firsts)):
                before_step()
                if not coming.done():
                    jax.block_until_ready(started)
                    clock = time.perf_counter()
                    wait([coming])
                    waited += time.perf_counter() - clock
                batch = coming.result()
                carry, mark = advance_on(carry, batch)
                started.append(mark)
                if len(started) > 1:
                    jax.block_until_ready(started.popleft())
                after_steps(len(batch.mask))
            state, total = carry
            yield Epoch(epoch + 1, state, float(total) / len(labels), waited)


def _send(
    inputs: PyTree,
    labels: Int[np.ndarray, " examples"],
    table: Int32[np.ndarray, "steps rows"],
    mesh: Mesh,
    readers: Executor,
) -> training.Batch:
    """The examples of some steps, [steps, rows, ...], on the devices.

    Each process reads what its own devices get.
    """
    split = NamedSharding(mesh, P(None, "data"))

    def put(x):
        def of_device(index):
            rows = table[index[:2]]
            result = devices.zeros_in_place((*rows.shape, *x.shape[1:]), x.dtype)
            flat = result.reshape(-1, *x.shape[1:])
            parts = np.array_split(np.arange(len(flat)), min(_READERS, len(flat)))
            numbers = rows.reshape(-1).clip(0)

            def read(part):
                flat[part[0] : part[-1] + 1] = x[numbers[part]]

            list(readers.map(read, parts))
            return result

        return jax.make_array_from_callback(
            (*table.shape, *x.shape[1:]), split, of_device
        )

    mask = (table >= 0).astype(np.float32)
    return training.Batch(
        jax.tree.map(put, inputs),
        put(labels),
        jax.make_array_from_callback(mask.shape, split, lambda index: mask[index]),
    )


def _steps_sent(example: PyTree[jax.ShapeDtypeStruct], batch_size: int) -> int:
    row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(example))
    return max(1, _MOST_SENT // max(1, batch_size * row))


def _steps_at_once(steps: int) -> int:
    # In loops, convolutions are slow on CPUs.
    return 1 if jax.default_backend() == "cpu" else min(steps, 128)


class Lowered(NamedTuple):
    """What `fit` compiles, for arrays of some shapes."""

    state: training.TrainState
    """Shapes, on the devices that `fit` uses."""
    examples: PyTree[jax.ShapeDtypeStruct]
    """(inputs, labels), likewise; streamed: what is sent at a time, a `Batch`."""
    steps: jax.stages.Lowered


def lower(
    learner: training.Learner,
    optimizer: optax.GradientTransformation,
    example: PyTree[jax.ShapeDtypeStruct],
    num_examples: int,
    batch_size: int,
    key: PRNGKeyArray,
    streamed: bool = False,
) -> Lowered:
    """The program of the steps of `fit`, without its arrays.

    Args:
        example: shape and type of one, as `training.example_of` gives it.
        num_examples: how many there are.
        batch_size, key, streamed: as `fit` takes them.
    """
    mesh = devices.for_steps(batch_size)

    def everywhere(tree):
        return planning.shapes(tree, mesh)

    split = NamedSharding(mesh, P("data"))
    order, advance, advance_on = make_epoch(
        learner,
        optimizer,
        np.asarray(jax.random.key_data(key)),
        num_examples,
        batch_size,
        split,
    )
    number = jax.ShapeDtypeStruct((), jnp.int32)
    state = everywhere(
        jax.eval_shape(lambda key: training.init_state(learner, optimizer, key), key)
    )
    label = jax.ShapeDtypeStruct((), jnp.int32)
    examples = planning.rows((example, label), num_examples, mesh)
    rows = everywhere(jax.eval_shape(order, number))
    total = everywhere(jax.ShapeDtypeStruct((), jnp.float32))
    steps = _steps_at_once(math.ceil(num_examples / batch_size))
    if streamed:
        steps = min(steps, _steps_sent(example, batch_size))
        mask = jax.ShapeDtypeStruct((), jnp.float32)
        examples = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (steps, rows.shape[1], *x.shape),
                x.dtype,
                sharding=NamedSharding(mesh, P(None, "data")),
            ),
            training.Batch(example, label, mask),
        )
        lowered = advance_on.lower((state, total), examples)
        return Lowered(state, examples, lowered)
    lowered = advance.lower((state, total), examples, rows, number, steps)
    return Lowered(state, examples, lowered)


def make_epoch(
    learner: training.Learner,
    optimizer: Any,
    key_data: np.ndarray,
    num_examples: int,
    batch_size: int,
    split: NamedSharding,
):
    """Compiles what an epoch consists of.

    Returns:
        order: epoch number -> int32 [steps, rows], the examples of each step in this
            epoch's random order. Rows are the batch size, rounded up to a multiple of
            the devices; -1 is padding.
        advance: ((state, sum of losses), (inputs, labels), order, first, count) -> the
            carry after steps first, ..., first + count - 1. One step is computed
            without a loop, which CPUs need (convolutions in XLA loops are slow there).
        advance_on: (carry, examples of some steps [steps, rows, ...]) -> (the carry
            after them, something that is there when they are done).
    """
    steps = math.ceil(num_examples / batch_size)
    parts = math.prod(split.mesh.shape.values())
    rows = math.ceil(batch_size / parts) * parts

    @functools.partial(jax.jit, out_shardings=NamedSharding(split.mesh, P()))
    def order(epoch: Int32[Array, ""]) -> Int32[Array, "steps rows"]:
        key = jax.random.fold_in(_purpose(key_data, _ORDER), epoch)
        shuffled = jax.random.permutation(key, num_examples).astype(jnp.int32)
        padding = steps * batch_size - num_examples
        table = jnp.pad(shuffled, (0, padding), constant_values=-1)
        table = table.reshape(steps, batch_size)
        return jnp.pad(table, ((0, 0), (0, rows - batch_size)), constant_values=-1)

    @functools.partial(
        jax.jit,
        static_argnames="count",
        donate_argnums=0,
        out_shardings=NamedSharding(split.mesh, P()),
    )
    def advance(carry, examples, table, first, count):
        def step(carry, index):
            chosen = jax.lax.with_sharding_constraint(table[index], split)
            inputs, labels = jax.tree.map(lambda x: x[chosen.clip(0)], examples)
            batch = training.Batch(inputs, labels, (chosen >= 0).astype(jnp.float32))
            return step_on(carry, batch), None

        if count == 1:
            return step(carry, first)[0]
        return jax.lax.scan(step, carry, first + jnp.arange(count))[0]

    @functools.partial(
        jax.jit, donate_argnums=0, out_shardings=NamedSharding(split.mesh, P())
    )
    def advance_on(carry, batches):
        if len(batches.mask) == 1:
            carry = step_on(carry, jax.tree.map(lambda x: x[0], batches))
        else:
            carry, _ = jax.lax.scan(
                lambda carry, batch: (step_on(carry, batch), None), carry, batches
            )
        return carry, carry[1] + 1

    def step_on(carry, batch):
        state, total = carry
        batch = jax.lax.with_sharding_constraint(batch, split)
        key = jax.random.fold_in(_purpose(key_data, _STEPS), state.step)
        state, loss = training.train_step(learner, optimizer, state, batch, key)
        return state, total + (loss * batch.mask.sum()).astype(total.dtype)

    return order, advance, advance_on


def _purpose(key_data: np.ndarray, purpose: int):
    return jax.random.fold_in(jax.random.wrap_key_data(key_data), purpose)
