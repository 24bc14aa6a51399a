"""How well a classifier predicts labels, over data sets and devices."""

import contextlib
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import (
    Array,
    ArrayLike,
    Float,
    Int,
    Int32,
    PyTree,
)

from gptfl_jax import devices, planning
from gptfl_jax.devices import replicate
from gptfl_jax.prefetch import ahead
from gptfl_jax.training import Batch, Learner, Variables, cross_entropy, example_of


class Metrics(NamedTuple):
    """How well labels are predicted."""

    loss: float
    """Mean cross-entropy, without label smoothing."""
    accuracy: float
    macro_f1: float
    """Mean over classes of 2 TP / (2 TP + FP + FN); a class that is neither a label nor
    predicted does not count (as in scikit-learn)."""


class Counts(NamedTuple):
    """Sums over examples from which `Metrics` follow; sums of `Counts` are counts."""

    confusion: Int32[Array, "classes classes"]
    """Examples by true class (row) and predicted class (column)."""
    loss: Float[Array, ""]


def count(
    learner: Learner,
    variables: Variables,
    batch: Batch,
    num_classes: int,
) -> Counts:
    """Evaluates one batch; padding rows count for nothing.

    Examples may be clips in segments, (features [clips, segments, ...], lengths [clips,
    segments]): such a clip is told by the mean of its segments' probabilities.
    """
    logits = _logits(learner, variables, batch.inputs)
    labels, mask = jnp.asarray(batch.labels), jnp.asarray(batch.mask)
    losses = jnp.where(mask > 0, cross_entropy(logits, labels), 0)
    cell = labels * num_classes + logits.argmax(-1)
    confusion = jnp.zeros(num_classes**2, jnp.int32)
    confusion = confusion.at[cell].add((mask > 0).astype(jnp.int32))
    return Counts(confusion.reshape(num_classes, num_classes), losses.sum())


def _logits(
    learner: Learner, variables: Variables, inputs: PyTree
) -> Float[Array, "batch classes"]:
    if not (isinstance(inputs, tuple) and inputs[1].ndim == 2):
        return learner.predict(variables, inputs)
    clips, segments = inputs[1].shape
    flat = jax.tree.map(lambda x: x.reshape(clips * segments, *x.shape[2:]), inputs)
    logits = learner.predict(variables, flat).reshape(clips, segments, -1)
    # A row of padding has no segment; it counts for nothing, but is to be a number.
    there = (inputs[1] > 0).at[:, 0].set(True)[..., None]
    shares = jnp.where(there, jax.nn.log_softmax(logits), -jnp.inf)
    return jax.nn.logsumexp(shares, axis=1) - jnp.log(there.sum(1))


def metrics(counts: Counts) -> Metrics:
    """Turns counts into numbers on the host; waits for the device."""
    confusion = np.asarray(counts.confusion, np.float64)
    correct = np.diag(confusion)
    total = confusion.sum()
    truths_and_guesses = confusion.sum(0) + confusion.sum(1)
    present = truths_and_guesses > 0
    f1 = 2 * correct[present] / truths_and_guesses[present]
    return Metrics(
        loss=float(counts.loss / max(total, 1)),
        accuracy=float(correct.sum() / max(total, 1)),
        macro_f1=float(f1.mean()) if present.any() else math.nan,
    )


def beside_chance(accuracy: float, labels: Int[np.ndarray, " examples"]) -> str:
    """What to say of an accuracy that may be luck; empty: it cannot well be.

    It may be within two standard deviations, of so many draws, of the accuracy of
    naming the most frequent class always.

    Args:
        accuracy: share of the examples that are told right.
        labels: of the data set.
    """
    constant = float(np.bincount(labels).max() / len(labels))
    deviation = math.sqrt(constant * (1 - constant) / len(labels))
    if accuracy > constant + 2 * deviation:
        return ""
    text = (
        f"is right on {accuracy:.1%} of the test set, and always naming its most "
        f"frequent class on {constant:.1%}"
    )
    if accuracy > constant:
        text += f" (of {len(labels):,} examples the difference may be luck)"
    return text


def evaluate_async(
    learner: Learner,
    variables: Variables,
    inputs: PyTree,
    labels: Int[ArrayLike, " examples"],
    num_classes: int,
    batch_size: int = 512,
    sharding: NamedSharding | None = None,
) -> Counts:
    """Starts the evaluation of a whole data set and returns without waiting for it.

    Each device counts its share of the examples, a batch at a time, in one program;
    then the counts are added, on CPU devices of one process without making one wait
    for another (`gptfl_jax.devices`). Rows in files are sent a batch at a time, in as
    many programs, and this returns when the last has been sent.

    Args:
        inputs, labels: best as `split_examples` gives them: others are copied to the
            devices every time. Examples with a label below 0 count for nothing.
        batch_size: examples at once, over all devices.
        sharding: how to split the examples over the devices of a mesh:
            `NamedSharding(mesh, P("data"))`.
    """
    if devices.in_files(inputs):
        return _evaluate_streamed(
            learner, variables, inputs, labels, num_classes, batch_size, sharding
        )
    if sharding is None:
        inputs, labels = jax.tree.map(jnp.asarray, (inputs, labels))
        return _count_all(learner, variables, inputs, labels, num_classes, batch_size)
    mesh = sharding.mesh
    inputs, labels = split_examples(inputs, labels, sharding)
    variables = replicate(variables, mesh)
    rows = math.ceil(batch_size / mesh.size)
    counts = _count_shares(
        learner, variables, inputs, labels, num_classes, rows, sharding
    )
    return devices.add_up(counts, mesh) if devices.apart(mesh) else counts


def planned(
    name: str, inputs: PyTree, batch_size: int, sharding: NamedSharding | None
) -> planning.Resident:
    """What lies on the devices of a test set, as `split_examples` would place it.

    Args:
        name: what a plan calls it.
        inputs: the examples, or what stands for them; nothing is read.
        batch_size, sharding: as in `evaluate_async`.
    """
    label = jax.ShapeDtypeStruct((), np.int32)
    count = len(jax.tree.leaves(inputs)[0])
    streamed = _is_streamed(inputs, sharding)
    arrays = planning.rows(
        (example_of(inputs), label),
        min(batch_size, count) if streamed else count,
        sharding and sharding.mesh,
        sharding and sharding.spec[0],
    )
    # Of two batches that are counted, and of two to come.
    return planning.Resident(name, arrays, copies=4 if streamed else 1)


def lower(
    learner: Learner,
    variables: Variables,
    inputs: PyTree,
    labels: PyTree,
    num_classes: int,
    batch_size: int = 512,
    sharding: NamedSharding | None = None,
) -> jax.stages.Lowered:
    """The program of `evaluate_async`, for arrays of these shapes.

    Args:
        variables: shapes, on all devices.
        inputs, labels: shapes of the examples as `planned` has them.
    """
    if sharding is None:
        return _count_all.lower(
            learner, variables, inputs, labels, num_classes, batch_size
        )
    rows = math.ceil(batch_size / sharding.mesh.size)
    return _count_shares.lower(
        learner, variables, inputs, labels, num_classes, rows, sharding
    )


def split_examples(
    inputs: PyTree, labels: Int[ArrayLike, " examples"], sharding: NamedSharding | None
) -> tuple[PyTree, Int32[Array | np.ndarray, " padded"]]:
    """Puts on each device the share of a test set that it is to evaluate.

    Rows that make up a multiple of the number of devices are zero, their labels -1.
    What is split already stays as it is, and so do rows in files for which there is no
    room (`devices.room_for`). Every process holds all examples.

    Args:
        sharding: as in `evaluate_async`; None: everything to the default device.
    """
    if sharding is not None and getattr(labels, "sharding", None) == sharding:
        return inputs, labels
    if _is_streamed(inputs, sharding):
        return inputs, labels
    return _put_split(inputs, labels, sharding)


def _is_streamed(inputs: PyTree, sharding: NamedSharding | None) -> bool:
    """Whether examples are sent a batch at a time: from files, where no room is."""
    if not devices.in_files(inputs):
        return False
    mesh = sharding and sharding.mesh
    return not devices.room_for(inputs, mesh, mesh.size if mesh else 1).enough


def _put_split(inputs, labels, sharding):
    if sharding is None:
        return replicate((inputs, labels), None)

    def split(leaf, fill):
        leaf = np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
        share = math.ceil(len(leaf) / sharding.mesh.size)

        def rows(index):
            part = leaf[index[0]]
            if len(part) == share:
                return part
            widths = [(0, share - len(part))] + [(0, 0)] * (leaf.ndim - 1)
            return np.pad(part, widths, constant_values=fill)

        shape = (share * sharding.mesh.size, *leaf.shape[1:])
        return jax.make_array_from_callback(shape, sharding, rows)

    labels = np.asarray(labels, np.int32)
    return jax.tree.map(lambda leaf: split(leaf, 0), inputs), split(labels, -1)


def _evaluate_streamed(
    learner, variables, inputs, labels, num_classes, batch_size, sharding
):
    count = len(labels)
    size = min(batch_size, count)
    if sharding is not None:
        variables = replicate(variables, sharding.mesh)

    def send(start):
        # As in `_count_all`: the last reaches back, and masks what was counted before.
        begin = min(start, count - size)
        rows = np.arange(begin, begin + size)
        truth = np.where(rows >= start, labels[rows], -1).astype(np.int32)
        batch = jax.tree.map(lambda leaf: leaf[begin : begin + size], inputs)
        return _put_split(batch, truth, sharding)

    total, sent = None, []
    with contextlib.closing(ahead(send, range(0, count, size))) as batches:
        for batch in batches:
            counts = evaluate_async(
                learner, variables, *batch.result(), num_classes, batch_size, sharding
            )
            total = counts if total is None else _add(total, counts)
            sent.append(total)
            if len(sent) > 2:  # batches that the devices hold
                jax.block_until_ready(sent.pop(0))
    return total


@jax.jit
def _add(first: Counts, second: Counts) -> Counts:
    return jax.tree.map(jnp.add, first, second)


@functools.partial(
    jax.jit, static_argnames=("learner", "num_classes", "rows", "sharding")
)
def _count_shares(learner, variables, inputs, labels, num_classes, rows, sharding):
    together = not devices.apart(sharding.mesh)

    def share(variables, inputs, labels):
        counts = _count_all(learner, variables, inputs, labels, num_classes, rows)
        if together:
            return jax.lax.psum(counts, sharding.spec[0])
        return jax.tree.map(lambda x: x[None], counts)

    return jax.shard_map(
        share,
        mesh=sharding.mesh,
        in_specs=(P(), sharding.spec, sharding.spec),
        out_specs=P() if together else sharding.spec,
        check_vma=False,
    )(variables, inputs, labels)


@functools.partial(jax.jit, static_argnames=("learner", "num_classes", "batch_size"))
def _count_all(learner, variables, inputs, labels, num_classes, batch_size):
    """Counts of all examples, `batch_size` at a time."""
    examples = labels.shape[0]
    size = min(batch_size, examples)

    def count_batch(begin):
        # The last batch reaches back to be full, and masks what was counted before:
        # one compiled shape, nothing padded.
        start = jnp.minimum(begin, examples - size)
        batch, truth = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size),
            (inputs, labels),
        )
        real = (start + jnp.arange(size) >= begin) & (truth >= 0)
        batch = Batch(batch, jnp.maximum(truth, 0), real.astype(jnp.float32))
        return count(learner, variables, batch, num_classes)

    if size == examples:
        return count_batch(0)
    empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(count_batch, 0))
    return jax.lax.fori_loop(
        0,
        math.ceil(examples / size),
        lambda b, total: jax.tree.map(jnp.add, total, count_batch(b * size)),
        empty,
    )


def evaluate(
    learner: Learner,
    variables: Variables,
    inputs: PyTree,
    labels: Int[ArrayLike, " examples"],
    num_classes: int,
    batch_size: int = 512,
    sharding: NamedSharding | None = None,
) -> Metrics:
    """Accuracy, macro F1 and loss over a whole data set; see `evaluate_async`.

    Raises:
        ValueError: a label outside 0..num_classes - 1.
    """
    lowest, highest = np.min(labels, initial=0), np.max(labels, initial=0)
    if lowest < 0 or highest >= num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, and go from {lowest} to "
            f"{highest}"
        )
    return metrics(
        evaluate_async(
            learner, variables, inputs, labels, num_classes, batch_size, sharding
        )
    )
