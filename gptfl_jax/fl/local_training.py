"""Local training: the steps one client takes on its own examples, or lanes of clients.

One client by itself goes through its batches in loops with traced bounds. Nothing is
padded to the longest client, and only the last batch of an epoch is padded, to a
quarter of the batch size. Lanes of clients step side by side, each step one batched
computation; a client that is done waits, masked, for the longest of its lanes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from gptfl_jax import convolution
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import sampling
from gptfl_jax.fl.client_rules import (
    Context,
    LocalRule,
    Measured,
    Message,
    joined,
    split,
)
from gptfl_jax.fl.microbatches import Differentiated, kept_bytes, rows_at_once
from gptfl_jax.fl.sums import accumulator, flat, scale
from gptfl_jax.training import Batch

# What a step of a network keeps for its backward pass, at most, where clients of it
# stand side by side on their own: of the five in docs/performance.md those of 12 to 93
# MB were faster so; that of 1.7 GB took 14 GB of four clients, and was a fifth faster.
_SMALL_BYTES = 2**28


class LocalTraining(NamedTuple):
    """How a client trains, whatever it minimises.

    The learning rate of a step is that of `optimizer` times `schedule(round)` times
    `local_schedule(step / steps)`. The optimizer's state starts fresh every round.
    """

    optimizer: (
        optax.GradientTransformation
        | Callable[[Float[Array, ""]], optax.GradientTransformation]
    )
    """Or rate -> optimizer, as `optax.sgd`: then the rate is an argument of compiled
    rounds (`composition.Algorithm.round`), so that other rates need no others."""
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
    local_schedule_steps: int = 0
    """Steps of which the share is; 0: those of the client. The original takes 100,
    whatever the client's number: the share of a large client exceeds 1."""

    @property
    def takes_rate(self) -> bool:
        """Whether `optimizer` is still to be given its learning rate."""
        return callable(self.optimizer)

    def at(self, rate: Float[Array, ""] | float | None) -> "LocalTraining":
        """With the optimizer of this learning rate; None: it has its own.

        Raises:
            ValueError: it takes one and there is none, or the other way round.
        """
        if self.takes_rate and rate is None:
            raise ValueError(
                "rate None: LocalTraining.optimizer takes one: give it to a round, as "
                "algorithm.at(0.1) does, or take an optimizer with a rate, as "
                "optax.sgd(0.1)"
            )
        if rate is not None and not self.takes_rate:
            raise ValueError(
                f"rate {rate}: LocalTraining.optimizer has its own; give a function of "
                "the rate, as optax.sgd"
            )
        return self if rate is None else self._replace(optimizer=self.optimizer(rate))


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


class Client(NamedTuple):
    """One client's training; `entry` is its part of a `cohorts.Cohort`."""

    rule: LocalRule
    local: LocalTraining
    row_block: int
    """Rows whose gradient is computed at once; 0: those of a batch."""
    small: bool = False
    """Whether a step keeps so little that several clients fit side by side."""

    def with_suited_block(self, context: Context, data: FederatedData) -> "Client":
        """Computes as many rows at once as `gptfl_jax.fl.microbatches` finds suited.

        Args:
            context: of one client, as arrays or their shapes.
        """
        start = jax.eval_shape(self.start, context)
        if jax.tree.leaves(start.model_state):
            return self._replace(row_block=0)
        size = rows_at_once(self._gradient_of_batch(start, context, data))
        return self._replace(row_block=size)

    def with_its_size(self, context: Context, data: FederatedData) -> "Client":
        """Knows whether it is `small`.

        Args:
            context: of one client, as arrays or their shapes.
        """
        start = jax.eval_shape(self.start, context)
        kept = kept_bytes(self._gradient_of_batch(start, context, data))
        return self._replace(small=kept <= _SMALL_BYTES)

    def _gradient_of_batch(self, start, context, data):
        index = jax.ShapeDtypeStruct((self.local.batch_size,), jnp.int32)
        mask = jax.ShapeDtypeStruct(index.shape, jnp.result_type(float))
        batch = jax.eval_shape(_take, data, index, mask)

        def loss(params, batch, key, more):
            context, model_state = more
            variables = joined(params, model_state, context.variables)
            return self.rule.loss(variables, batch, key, context)

        more = context, start.model_state
        return Differentiated(loss, start.params, batch, jax.random.key(0), more)

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
        """(message, new own state, the update as one vector, its norm, whether all that
        is finite)."""
        variables = joined(progress.params, progress.model_state, context.variables)
        mass = progress.shadow[0] if progress.shadow else ()
        measured = Measured(mass, progress.start_gradient)
        message, own = self.rule.report(context, variables, measured)
        # Dot products run vectorised on CPUs, sums of squares do not.
        update = flat(message.update)
        square = jnp.vdot(update, update)
        others = flat((message.model_state, message.extra, own))
        # A root, because XLA computes it once: it would write what is plainly added up
        # anew into the kernel of each array that depends on it.
        finite = jnp.isfinite(jnp.sqrt(square + jnp.vdot(others, others)))
        return message, own, update, jnp.sqrt(square), finite

    def message(self, context: Context, own: PyTree) -> Message:
        context = context._replace(own=own)
        return self.finish(context, self.start(context))[0]

    def train(self, context, data, entry, factor) -> Progress:
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
        return steps(context, data, entry, factor, progress)

    def _steps_of_blocks(self, context, data, entry, factor, progress) -> Progress:
        """All steps in one loop: a step computes no more blocks than it has rows."""

        def step(s, progress):
            epoch = lax.div(s, entry.batches)
            shuffle = order_of_epoch(entry.order_key, epoch)
            rows = self._rows(entry, shuffle, s - epoch * entry.batches)
            key = jax.random.fold_in(entry.step_key, s)
            share = self._share(s, entry.steps)
            return self._step(context, data, progress, *rows, key, factor, share)

        return lax.fori_loop(0, entry.steps, step, progress)

    def _steps_of_batches(self, context, data, entry, factor, progress) -> Progress:
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
            shuffle = order_of_epoch(entry.order_key, e)

            def step(b, progress, index, mask):
                key = jax.random.fold_in(entry.step_key, before + b)
                share = self._share(before + b, entry.steps)
                return self._step(
                    context, data, progress, index, mask, key, factor, share
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

    def train_lanes(self, contexts, data, entries, factor) -> Progress:
        """Several clients side by side, every argument [lanes, ...]."""
        if not self.small:
            return self._train_lanes(contexts, data, entries, factor)
        with convolution.side_by_side():
            return self._train_lanes(contexts, data, entries, factor)

    def _train_lanes(self, contexts, data, entries, factor):
        in_context = Context(None, None, 0)

        def one(context, entry, progress, s):
            epoch = lax.div(s, entry.batches)
            shuffle = order_of_epoch(entry.order_key, epoch)
            rows = self._rows(entry, shuffle, s - epoch * entry.batches)
            key = jax.random.fold_in(entry.step_key, s)
            share = self._share(s, jnp.maximum(entry.steps, 1))
            new = self._step(context, data, progress, *rows, key, factor, share)
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
        return index, (place < entry.size).astype(jnp.result_type(float))

    def _passes(self, entry):
        """Batches it takes to see all examples, for a client that takes part."""
        size = jnp.int32(self.local.batch_size)
        return jnp.where(entry.steps > 0, lax.div(entry.size + (size - 1), size), 0)

    def _add_gradient(self, context, data, entry, progress, b):
        """Adds the share of batch b in the gradient over all examples."""
        place = b * self.local.batch_size + jnp.arange(self.local.batch_size)
        mask = (place < entry.size).astype(jnp.result_type(float))
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
            variables = joined(params, progress.model_state, context.variables)
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

    def _share(self, step, steps):
        """What is done before a step, as `local_schedule` takes it."""
        steps = self.local.local_schedule_steps or steps
        return step.astype(jnp.result_type(float)) / steps

    def _step(self, context, data, progress, index, mask, key, factor, share):
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
            of_step = self.local.local_schedule(share)
            factor = of_step if factor is None else factor * of_step
        gradient = self.rule.correct(gradient, progress.params, context)
        params, state = _apply(
            self._optimizer(),
            gradient,
            progress.optimizer_state,
            progress.params,
            factor,
        )
        shadow = progress.shadow
        if self.rule.shadow is not None:
            x, shadow_state = shadow
            pull = jnp.asarray(self.rule.shadow(x), x.dtype)
            shadow = _apply(self.local.optimizer, pull, shadow_state, x, factor)
        loss_sum = progress.loss + value.astype(mask.dtype) * mask.sum()
        return Progress(
            params, model_state, state, shadow, progress.start_gradient, loss_sum
        )


def order_of_epoch(
    order_key: PRNGKeyArray, epoch: Int[Array, ""] | int
) -> sampling.Shuffle:
    """In which order a client takes its examples in an epoch."""
    return sampling.Shuffle.draw(jax.random.fold_in(order_key, epoch))


def _take(data: FederatedData, index: Array, mask: Array) -> Batch:
    def rows(x):
        return jnp.take(x, index, axis=0, mode="clip")

    return Batch(jax.tree.map(rows, data.inputs), rows(data.labels), mask)


def _apply(optimizer, gradient, state, params, factor):
    updates, state = optimizer.update(gradient, state, params)
    if factor is not None:
        updates = scale(updates, jnp.asarray(factor))
    return optax.apply_updates(params, updates), state


def _buckets(batch_size: int, count: int) -> tuple[int, ...]:
    """Array sizes for the rest of an epoch. Four waste an eighth of a batch on average,
    two a quarter, and each costs the compilation of one more step."""
    unit = math.ceil(batch_size / count)
    return tuple(sorted({min(batch_size, unit * i) for i in range(1, count + 1)}))
