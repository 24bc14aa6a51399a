"""An epoch of central training, with the examples on the device and ahead of it."""

import time

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from gptfl_jax import central_training, training
from gptfl_jax.data.stored_rows import Part, StoredRows

COUNT, BATCH = 22, 5


class Net(nn.Module):
    """Two dense layers, with dropout."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        x = nn.relu(nn.Dense(8)(inputs.reshape(len(inputs), -1)))
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(x))


LABELS = np.random.default_rng(1).integers(0, 3, COUNT).astype(np.int32)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def learner():
    return training.make_learner(
        Net(),
        jax.ShapeDtypeStruct((6, 6, 3), np.uint8),
        augmentation=flip,
    )


def flip(key, inputs):
    return jax.numpy.where(jax.random.bernoulli(key), inputs, inputs[:, :, ::-1])


OPTIMIZER = optax.adam(1e-2)
KEY = jax.random.key(5)


def fit(learner, inputs, epochs=3, state=None, **options):
    if state is None:
        state = central_training.initial_state(learner, OPTIMIZER, KEY, BATCH)
    labels = LABELS[: len(inputs)]
    return [
        (each.number, jax.tree.map(np.array, each.state), each.loss, each.waited_s)
        for each in central_training.fit(
            *(learner, OPTIMIZER, state, inputs, labels, KEY, epochs, BATCH), **options
        )
    ]


def test_streamed_epochs_are_those_of_examples_on_the_device(
    learner, pictures, tmp_path
):
    """To the last bit, from memory and from files, also when one run continues."""
    resident = fit(learner, pictures)
    assert [number for number, *_ in resident] == [1, 2, 3]
    assert all(waited == 0 for *_, waited in resident)
    np.save(tmp_path / "rows.npy", pictures[::-1])
    mapped = Part(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    stored = StoredRows([mapped]).take(np.arange(COUNT)[::-1])
    calls = []
    in_files = fit(
        learner,
        stored,
        streamed=True,
        before_step=lambda: calls.append(0),
        after_steps=calls.append,
    )
    assert calls == [0, 1] * 5 * 3
    state = in_files[0][1]
    rest = fit(learner, pictures, state=jax.device_put(state), done=1, streamed=True)
    for found, expected in ((in_files, resident), (rest, resident[1:])):
        for one, other in zip(found, expected, strict=True):
            assert one[0] == other[0] and one[2] == other[2]
            chex.assert_trees_all_equal(one[1], other[1])


def test_a_run_may_stop_between_streamed_steps(learner, pictures):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(learner, pictures, streamed=True, before_step=stop)
    assert len(calls) == 7


class Slow:
    """Rows that take 20 ms a read."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        time.sleep(0.02)
        return self.array[rows]


def test_the_time_that_steps_wait_is_measured(learner, pictures):
    *_, slow = fit(learner, Slow(pictures), epochs=2, streamed=True)
    # Five steps of a millisecond, whose examples take 20 each.
    assert 0.05 < slow[3] < 5
