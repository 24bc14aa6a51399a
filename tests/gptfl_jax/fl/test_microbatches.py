"""When, and into how many rows, a batch is cut for its gradient."""

import jax
import jax.numpy as jnp
import pytest

from gptfl_jax import augmentation, training
from gptfl_jax.fl.microbatches import Differentiated, rows_at_once
from gptfl_jax.models import cnn, convnet, resnet


def rows(model, shape, batch_size, **options):
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    learner = training.make_learner(model, example, **options)
    variables = dict(jax.eval_shape(learner.init, jax.random.key(0)))
    params = variables.pop("params")
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), variables)
    batch = training.Batch(
        jnp.zeros((batch_size, *shape), jnp.float32),
        jnp.zeros(batch_size, jnp.int32),
        jnp.zeros(batch_size, jnp.float32),
    )

    def loss(params, batch, key, context):
        return learner.loss({"params": params, **state}, batch, key)

    key = jax.random.key(0)
    return rows_at_once(Differentiated(loss, params, batch, key, ()))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="sizes on a CPU")
def test_large_activations_and_small_weights_are_cut():
    # 2.15 MB kept a row: 9 blocks or more; 8 blocks of 4 rows need no padding.
    assert rows(convnet.Model(10), (32, 32, 3), 32) == 4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="sizes on a CPU")
def test_blocks_beside_large_weights_are_larger():
    # 17 MB of weights: blocks may keep 275 MB.
    wide = resnet.Model(10, width=64, norm="group")
    assert rows(wide, (64, 64, 3), 32) == 4
    assert rows(wide, (16, 16, 3), 32) == 0


@pytest.mark.parametrize(
    ("model", "shape", "options"),
    [
        pytest.param(cnn.Model(62), (28, 28, 1), {}, id="large weights"),
        pytest.param(convnet.Model(10, 16, 2), (8, 8, 1), {}, id="small"),
        pytest.param(
            resnet.Model(10, norm="batch"), (32, 32, 3), {}, id="batch statistics"
        ),
        pytest.param(
            convnet.Model(10),
            (32, 32, 3),
            {"augmentation": augmentation.Augmentation(flip=True)},
            id="draws",
        ),
    ],
)
def test_left_whole(model, shape, options):
    assert rows(model, shape, 32, **options) == 0
