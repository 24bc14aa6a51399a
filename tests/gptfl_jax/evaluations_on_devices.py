"""Counts over test sets of many sizes on a number of CPU devices, printed as JSON."""

import json
import sys

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptfl_jax import devices, evaluation, training
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
    pixels, digits = handwriting()
    learner = training.make_learner(
        convnet.Model(10, width=8, depth=3), training.example_of(pixels)
    )
    placed = evaluation.split_examples(pixels, digits, split)
    evaluate("mnist", learner, *placed, 10)
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
