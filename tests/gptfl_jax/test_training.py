import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.metrics import log_loss

from gptfl_jax import evaluation, training
from gptfl_jax.augmentation import Augmentation
from gptfl_jax.errors import UserError
from gptfl_jax.nn import BatchNorm
from gptfl_jax.training import Batch


class Linear(nn.Module):
    """Logits that are linear in the flattened inputs."""

    num_classes: int

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        return nn.Dense(self.num_classes, name="head")(inputs.reshape(len(inputs), -1))


class Normalised(nn.Module):
    """Dense layers with batch normalisation, or one of each example's own features."""

    batch_statistics: bool = True

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        x = nn.Dense(8, name="in")(inputs.reshape(len(inputs), -1))
        if self.batch_statistics:
            x = BatchNorm(epsilon=1e-5, name="norm")(x, train, mask)
        else:
            x = nn.LayerNorm()(x)
        return nn.Dense(5, name="out")(jax.nn.relu(x))


class MeanOverTime(nn.Module):
    """A model of sequences of unequal length, with dropout."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        features, lengths = inputs["features"], inputs["lengths"]
        real = jnp.arange(features.shape[1]) < lengths[:, None]
        mean = (features * real[..., None]).sum(1) / lengths[:, None]
        mean = nn.Dropout(0.5, deterministic=not train)(mean)
        return nn.Dense(3)(mean)


def random_batch(rows=7, shape=(4, 4, 1), classes=5, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, 256, (rows, *shape)).astype(np.uint8)
    labels = rng.integers(0, classes, rows).astype(np.int32)
    return Batch(inputs, labels, np.ones(rows, np.float32))


def padded(batch, rows):
    """The batch with rows of nonsense that the mask hides."""
    missing = rows - len(batch.labels)
    inputs = np.pad(batch.inputs, [(0, missing)] + [(0, 0)] * 3, constant_values=99)
    labels = np.pad(batch.labels, (0, missing), constant_values=1)
    return Batch(inputs, labels, np.pad(batch.mask, (0, missing)))


# Loss -------------------------------------------------------------------------------


def test_cross_entropy_is_that_of_sklearn_and_optax():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 4)).astype(np.float32)
    labels = rng.integers(0, 4, 20)
    probabilities = jax.nn.softmax(logits.astype(np.float64))
    losses = training.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    expected = log_loss(labels, probabilities, labels=range(4))
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-6)

    smooth = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.3)
    expected = optax.softmax_cross_entropy(logits, smooth)
    losses = training.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.3)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_masked_mean_ignores_whatever_is_masked():
    values, mask = jnp.array([1.0, 4.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0])
    assert training.masked_mean(values, mask) == 2.5
    assert training.masked_mean(values, jnp.zeros(3)) == 0
    gradient = jax.grad(training.masked_mean)(values, mask)
    np.testing.assert_array_equal(gradient, [0.5, 0.5, 0])


def test_loss_and_gradient_of_a_linear_model_by_hand():
    batch = random_batch()
    normalisation = training.Normalisation((0.25,), (0.5,))
    learner = training.make_learner(
        Linear(5), training.example_of(batch.inputs), normalisation=normalisation
    )
    variables = learner.init(jax.random.key(0))
    kernel, bias = (
        np.float64(variables["params"]["head"][n]) for n in ("kernel", "bias")
    )
    x = (batch.inputs.reshape(7, -1) / 255 - 0.25) / 0.5
    logits = x @ kernel + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = np.eye(5)[batch.labels]
    np.testing.assert_allclose(
        learner.predict(variables, batch.inputs), logits, rtol=1e-4, atol=1e-5
    )

    def loss(params):
        return learner.loss({"params": params}, batch, jax.random.key(1))

    (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
    )
    assert state == {}
    np.testing.assert_allclose(value, -np.log(p[target == 1]).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        gradient["head"]["kernel"], x.T @ (p - target) / 7, rtol=1e-4, atol=1e-6
    )
    # One step of SGD subtracts it.
    optimizer = training.make_optimizer("sgd", 0.1, momentum=0)
    state = training.init_state(learner, optimizer, jax.random.key(0))
    state, before = training.train_step(
        learner, optimizer, state, batch, jax.random.key(1)
    )
    np.testing.assert_allclose(before, value)
    np.testing.assert_allclose(
        state.variables["params"]["head"]["bias"],
        bias - 0.1 * (p - target).mean(0),
        rtol=1e-4,
        atol=1e-6,
    )
    assert state.step == 1


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_padding_rows_change_nothing(batch_statistics):
    batch = random_batch(5)
    learner = training.make_learner(
        Normalised(batch_statistics),
        training.example_of(batch.inputs),
        augmentation=Augmentation(crop_padding=1, flip=True),
    )
    variables = learner.init(jax.random.key(0))
    step = jax.jit(
        jax.value_and_grad(
            lambda params, batch: learner.loss(
                {**variables, "params": params}, batch, jax.random.key(1)
            ),
            has_aux=True,
        )
    )
    (loss, state), gradient = step(variables["params"], batch)
    (other_loss, other_state), other_gradient = step(
        variables["params"], padded(batch, 8)
    )
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    chex.assert_trees_all_close(state, other_state, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(gradient, other_gradient, rtol=1e-3, atol=1e-5)
    assert bool(state) == batch_statistics


def test_batch_statistics_are_updated_in_training_and_used_in_evaluation():
    batch = random_batch(32)
    learner = training.make_learner(Normalised(), training.example_of(batch.inputs))
    variables = learner.init(jax.random.key(0))
    before = learner.predict(variables, batch.inputs)
    _, state = learner.loss(variables, batch, jax.random.key(1))
    mean = state["batch_stats"]["norm"]["mean"]
    hidden = batch.inputs.reshape(32, -1) / 255 @ variables["params"]["in"]["kernel"]
    np.testing.assert_allclose(mean, 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    after = learner.predict({**variables, **state}, batch.inputs)
    assert np.abs(after - before).max() > 1e-3


def test_inputs_may_be_trees_and_dropout_is_only_in_training():
    rng = np.random.default_rng(0)
    inputs = {
        "features": rng.normal(size=(4, 6, 8)).astype(np.float32),
        "lengths": np.array([6, 2, 3, 1], np.int32),
    }
    batch = Batch(inputs, np.arange(4, dtype=np.int32) % 3, np.ones(4, np.float32))
    learner = training.make_learner(MeanOverTime(), training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    losses = [learner.loss(variables, batch, jax.random.key(i))[0] for i in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    predicted = learner.predict(variables, inputs)
    longer = {
        **inputs,
        "features": np.pad(inputs["features"], ((0, 0), (0, 3), (0, 0))),
    }
    np.testing.assert_allclose(learner.predict(variables, longer), predicted, rtol=1e-5)
    result = evaluation.evaluate(learner, variables, inputs, batch.labels, 3, 3)
    assert result.accuracy == np.mean(predicted.argmax(-1) == batch.labels)


# Precision --------------------------------------------------------------------------


def loss_and_gradient(dtype, scale=1.0):
    batch = random_batch(6)
    learner = training.make_learner(
        Normalised(False), training.example_of(batch.inputs), dtype=dtype
    )
    variables = learner.init(jax.random.key(0))

    def loss(params):
        return scale * learner.loss({"params": params}, batch, jax.random.key(1))[0]

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("bfloat16", 0.06), ("float16", 0.01)]
)
def test_half_precision_is_close_to_single(dtype, tolerance):
    loss, gradient = loss_and_gradient("float32")
    half_loss, half_gradient = loss_and_gradient(dtype)
    assert half_loss.dtype == jnp.float32
    np.testing.assert_allclose(half_loss, loss, rtol=tolerance)
    for a, b in zip(
        jax.tree.leaves(half_gradient), jax.tree.leaves(gradient), strict=True
    ):
        assert a.dtype == jnp.float32
        assert jnp.abs(a - b).max() <= tolerance * jnp.abs(b).max() + 1e-6


def test_float16_gradients_are_scaled_on_the_way():
    # The gradients of the logits, multiplied by 1e-5, would all be subnormal or zero.
    _, gradient = loss_and_gradient("float32", 1e-5)
    _, half_gradient = loss_and_gradient("float16", 1e-5)
    reference = gradient["in"]["kernel"]
    error = jnp.abs(half_gradient["in"]["kernel"] - reference)
    assert error.max() < 0.05 * jnp.abs(reference).max()
    # Nor are those of the weights: they are divided as float32.
    assert jnp.median(error / jnp.abs(reference)) < 0.01


def test_float64():
    with pytest.raises(UserError, match="JAX_ENABLE_X64"):
        loss_and_gradient("float64")
    loss, gradient = loss_and_gradient("float32")
    with jax.enable_x64(True):
        wide_loss, wide_gradient = loss_and_gradient("float64")
        assert wide_loss.dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(wide_gradient)} == {
            jnp.dtype("float64")
        }
    np.testing.assert_allclose(loss, wide_loss, rtol=1e-5)
    chex.assert_trees_all_close(gradient, wide_gradient, rtol=1e-3, atol=1e-6)
    with pytest.raises(UserError, match="takes float32, bfloat16"):
        loss_and_gradient("int8")


# Optimizers -------------------------------------------------------------------------


def steps(optimizer, gradients, start):
    params, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    for gradient in gradients:
        update, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, update)
    return np.asarray(params)


GRADIENTS = np.array([[1.0, -2.0], [0.5, 0.5], [-3.0, 1.0]], np.float32)
START = np.array([1.0, -1.0], np.float32)


def test_sgd_decays_before_momentum():
    x, velocity = START.astype(float), 0
    for gradient in GRADIENTS:
        velocity = 0.9 * velocity + gradient + 0.1 * x
        x = x - 0.01 * velocity
    optimizer = training.make_optimizer("sgd", 0.01, momentum=0.9, weight_decay=0.1)
    np.testing.assert_allclose(steps(optimizer, GRADIENTS, START), x, rtol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    x, m, v = START.astype(float), 0, 0
    for t, gradient in enumerate(GRADIENTS.astype(float), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = x - 0.01 * (step + 0.9 * x)
    optimizer = training.make_optimizer("adamw", 0.01, weight_decay=0.9)
    np.testing.assert_allclose(steps(optimizer, GRADIENTS, START), x, rtol=1e-5)


def test_clipping_scales_long_gradients():
    optimizer = training.make_optimizer("sgd", 1.0, momentum=0, clip_norm=1.0)
    gradients = np.array([[3.0, 4.0], [0.3, 0.4]], np.float32)
    np.testing.assert_allclose(
        steps(optimizer, gradients, np.zeros(2, np.float32)), [-0.9, -1.2], rtol=1e-6
    )


def test_schedules():
    cosine = training.make_schedule("cosine", 2.0, steps=10, warmup_steps=2)
    rates = [float(cosine(step)) for step in range(11)]
    np.testing.assert_allclose(rates[:3], [2 / 3, 4 / 3, 2])
    np.testing.assert_allclose(
        rates[2:], 1 + np.cos(np.arange(9) / 8 * np.pi), atol=1e-6
    )
    constant = training.make_schedule("constant", 0.5, steps=10)
    assert [float(constant(step)) for step in (0, 9, 99)] == [0.5] * 3
    with pytest.raises(UserError, match="takes cosine or constant"):
        training.make_schedule("step", 1.0, 10)
    with pytest.raises(UserError, match="takes adamw or sgd"):
        training.make_optimizer("lion", 1.0)


# Models that others wrote -----------------------------------------------------------


class Plain(nn.Module):
    """A model as Flax's own documentation writes it."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="head")(x.reshape(len(x), -1))


class PlainTraining(Plain):
    @nn.compact
    def __call__(self, x, train):
        del train
        return nn.Dense(5, name="head")(x.reshape(len(x), -1))


class Masked(Plain):
    @nn.compact
    def __call__(self, x, mask, train):
        assert (mask is None) == (train is False)
        return nn.Dense(5, name="head")(x.reshape(len(x), -1))


class Deterministic(Plain):
    @nn.compact
    def __call__(self, x, deterministic):
        return x


class OfNnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(len(x), -1))


@pytest.mark.parametrize("model", [Plain(), PlainTraining(), Masked()])
def test_a_model_may_do_without_train_and_mask(model):
    batch = random_batch()
    example = training.example_of(batch.inputs)
    learner = training.make_learner(model, example)
    reference = training.make_learner(Linear(5), example)
    variables = learner.init(jax.random.key(0))
    key = jax.random.key(1)
    np.testing.assert_array_equal(
        learner.predict(variables, batch.inputs),
        reference.predict(variables, batch.inputs),
    )
    assert (
        learner.loss(variables, batch, key)[0]
        == (reference.loss(variables, batch, key)[0])
    )


def test_a_module_of_nnx_is_told_of_the_bridge():
    example = training.example_of(random_batch().inputs)
    arguments = training._arguments_of.__wrapped__  # types are checked in tests alone
    with pytest.raises(TypeError, match=r"OfNnx is an NNX module.*bridge\.to_linen"):
        arguments(OfNnx(nnx.Rngs(0)))
    with pytest.raises(TypeError, match="takes an instance of a flax.linen.Module"):
        arguments(Plain)
    with pytest.raises(TypeError, match="Deterministic.__call__ takes deterministic"):
        training.make_learner(Deterministic(), example)
    learner = training.make_learner(nnx.bridge.to_linen(OfNnx), example)
    variables = learner.init(jax.random.key(0))
    logits = learner.predict(variables, random_batch().inputs)
    assert logits.shape == (7, 5) and float(jnp.abs(logits).max()) > 0
