import jax
import numpy as np
import pytest

from benchmarks import fl_round
from gptfl_jax import training


@pytest.mark.parametrize(
    ("workload", "shape", "classes", "first", "others"),
    [
        # Products of the first layer, whose input needs no gradient, and of the others.
        (
            "w1",
            (28, 28, 1),
            62,
            28**2 * 25 * 32,
            14**2 * 25 * 32 * 64 + 3136 * 512 + 512 * 62,
        ),
        (
            "w2",
            (32, 32, 3),
            10,
            32**2 * 27 * 128,
            (16**2 + 8**2) * 9 * 128**2 + 2048 * 10,
        ),
        # Two convolutions; both directions of the GRU, 40 frames; two dense layers.
        (
            "w4",
            (160, 128),
            35,
            160 * 3 * 128 * 64,
            80 * 3 * 64 * 128 + 40 * 2 * 384 * (128 + 128) + 256 * 128 + 128 * 35,
        ),
    ],
)
def test_operations_of_the_workloads(workload, shape, classes, first, others):
    learner = training.make_learner(
        fl_round.MODELS[workload](classes), jax.ShapeDtypeStruct(shape, np.float32)
    )
    x, y = np.zeros((1, *shape), np.float32), np.zeros(1, np.int32)
    counted = fl_round.operations_an_example(learner, x, y)
    assert counted == 2 * (2 * first + 3 * others)
