"""Counts over test sets of many sizes on a number of CPU devices, printed as JSON."""

import json
import sys
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptfl_jax import central_training, devices, evaluation, training
from gptfl_jax.data import stored_rows
from gptfl_jax.models import convnet

SIZES = (1, 2, 7, 8, 9, 511, 512, 513, 2_000, 10_000, 100_000)
CLASSES = 6


class Given(nn.Module):
    """Predicts what the inputs say."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        zero = self.param("zero", nn.initializers.zeros, ())
        return 4 * jax.nn.one_hot(inputs[:, 0], CLASSES) + zero


def examples(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(what is predicted [size, 1], what is true [size])."""
    random = np.random.default_rng(size)
    guess = random.integers(0, CLASSES, (size, 1)).astype(np.int32)
    return guess, random.integers(0, CLASSES, size).astype(np.int32)


def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """Random pixels of MNIST's test set's size."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (10_000, 28, 28, 1), dtype=np.uint8)
    return pixels, random.integers(0, 10, 10_000).astype(np.int32)


def trained(streamed: bool) -> list[float]:
    """Loss and weights after central training, a step split over all devices."""
    random = np.random.default_rng(3)
    inputs = random.standard_normal((22, 3)).astype(np.float32)
    labels = random.integers(0, 2, 22).astype(np.int32)
    learner = training.make_learner(
        nn.Dense(2), training.example_of(inputs), augmentation=shifted
    )
    everyone = Mesh(np.array(jax.devices()), ("data",))
    with mock.patch.object(devices, "for_steps", lambda size: everyone):
        key, optimizer = jax.random.key(0), optax.adam(0.1)
        state = central_training.initial_state(learner, optimizer, key, 10)
        *_, last = central_training.fit(
            *(learner, optimizer, state, inputs, labels, key, 2, 10), streamed=streamed
        )
    weights = jax.tree.leaves(last.state.variables)
    return [last.loss, *np.concatenate([np.ravel(leaf) for leaf in weights]).tolist()]


def shifted(key, inputs):
    return inputs + jax.random.uniform(key, inputs.shape)


def main() -> None:
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    mesh = devices.all_along("data")
    split = NamedSharding(mesh, P("data")) if mesh else None
    results = {}

    def evaluate(name, learner, inputs, labels, classes):
        variables = devices.replicate(learner.init(jax.random.key(0)), mesh)
        counts = evaluation.evaluate_async(
            learner, variables, inputs, labels, classes, 512, split
        )
        results[name] = [np.asarray(counts.confusion).tolist(), float(counts.loss)]

    learner = training.make_learner(Given(), jax.ShapeDtypeStruct((1,), np.int32))
    for size in SIZES:
        evaluate(str(size), learner, *examples(size), CLASSES)
    guess, truth = examples(2_000)
    rows = stored_rows.StoredRows([stored_rows.Part(guess)])
    evaluate("in files", learner, rows, truth, CLASSES)
    pixels, digits = handwriting()
    learner = training.make_learner(
        convnet.Model(10, width=8, depth=3), training.example_of(pixels)
    )
    placed = evaluation.split_examples(pixels, digits, split)
    evaluate("mnist", learner, *placed, 10)
    if jax.device_count() != 2:  # of which the programs may have no collective
        results["trained"] = [trained(streamed) for streamed in (False, True)]
    if mesh:
        given = np.zeros((7, 3), np.float32)
        copies = devices.replicate(given, mesh).addressable_shards
        given += 1
        results["copies"] = [float(shard.data.sum()) for shard in copies]
        places = {shard.data.unsafe_buffer_pointer() for shard in copies}
        results["places"] = len(places)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
