import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import augmentation, evaluation, models, training
from gptfl_jax.data import datasets, sources
from gptfl_jax.errors import UserError

RNG = np.random.default_rng(0)


def test_by_hand():
    # One block that sums windows of 5 frames; lengths 4 and 2 of 5 frames.
    model = models.create("audio_cnn", 1, widths=(1,))
    params = {
        "conv0": {"kernel": jnp.ones((5, 1, 1)), "bias": jnp.full(1, -9.0)},
        "classifier": {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.ones(1)},
    }
    x = jnp.asarray([[1.0, 2, 3, 4, 99], [5, 6, 99, 99, 99]])[..., None]
    # Sums 6, 10, 10, 9 and 11, 11; less 9: 0, 1, 1, 0 and 2, 2; pairs: 1, 1 and 2.
    logits = jax.jit(model.apply)({"params": params}, (x, jnp.asarray([4, 2])))
    np.testing.assert_allclose(logits, [[2 * 1 + 1], [2 * 2 + 1]])


def test_a_clip_is_as_if_alone():
    model = models.create("audio_cnn", 4, widths=(3, 5))
    x = jnp.asarray(RNG.normal(size=(3, 21, 6)).astype(np.float32))
    lengths = jnp.asarray([21, 11, 4])
    variables = jax.jit(model.init)(jax.random.key(0), (x, lengths))
    apply = jax.jit(model.apply)
    together = apply(variables, (x, lengths))
    for row, length in enumerate(lengths.tolist()):
        alone = apply(variables, x[row : row + 1, :length])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def test_number_of_parameters():
    model = models.create("audio_cnn", 10)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 50, 40)))
    )
    expected = 5 * 40 * 64 + 64 + 5 * 64 * 96 + 96 + 5 * 96 * 128 + 128 + 128 * 10 + 10
    assert training.number_of_parameters(variables) == expected


def test_clips_that_are_too_short():
    model = models.create("audio_cnn", 3)
    with pytest.raises(UserError, match="clips of 7 frames cannot be halved 3 times"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 7, 2))))


@pytest.mark.long
def test_reads_a_speaker_it_never_heard():
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    folder = pathlib.Path(os.environ["GPTFL_DATA_DIR"]) / "fsdd"
    features = {"hop": 160}  # a frame every 20 ms will do
    source = sources.load(
        "fsdd", str(folder), test_speakers=("theo",), features=features
    )
    train, test = source.train, source.test
    learner = training.make_learner(
        models.create("audio_cnn", 10, widths=(48, 64)),
        training.example_of(train.inputs),
        normalisation=training.Normalisation(source.mean, source.std),
        augmentation=augmentation.SpecAugment(warp=0.1, shift=2),
    )
    epochs, size = 5, 50
    steps = epochs * len(train.labels) // size
    optimizer = training.make_optimizer(
        "adamw", training.make_schedule("cosine", 3e-3, steps)
    )
    state = training.init_state(learner, optimizer, jax.random.key(0))
    step = jax.jit(
        lambda state, batch, key: training.train_step(
            learner, optimizer, state, batch, key
        )[0]
    )
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(train.labels)) for _ in range(epochs)]
    for number, rows in enumerate(np.concatenate(orders).reshape(steps, size)):
        part = datasets.select(train, rows)
        batch = training.Batch(part.inputs, part.labels, np.ones(size, np.float32))
        state = step(state, batch, jax.random.fold_in(jax.random.key(1), number))
    found = evaluation.evaluate(learner, state.variables, test.inputs, test.labels, 10)
    # Chance is 0.1.
    assert found.accuracy > 0.7
