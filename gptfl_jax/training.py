"""What training one classifier takes, as pure functions.

Central training (`train/downstream.py`) and the local training of federated clients
(`gptfl_jax/fl/`) share the loss and the step in this module.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import (
    Array,
    ArrayLike,
    Float,
    Int,
    Int32,
    Num,
    PRNGKeyArray,
    PyTree,
    Shaped,
)

from gptfl_jax import planning
from gptfl_jax.errors import UserError
from gptfl_jax.trainable import Trainable, frozen, head_alone, moving, whole

Variables = dict[str, Any]
"""`{"params": ..., **model_state}`; model_state, as `{"batch_stats": ...}`, is often
empty. The params are float32 (float64 under dtype float64). Where the head alone is
trained, `gptfl_jax.trainable` says what is in them."""

Inputs = PyTree[Num[Array, "batch ..."]]
"""Mostly pixels [batch, height, width, channels]."""


class Batch(NamedTuple):
    """Examples of one step; rows of mask 0 are padding and count for nothing."""

    inputs: PyTree[Shaped[ArrayLike, "batch ..."]]
    """Raw, as stored (uint8 pixels)."""
    labels: Int[ArrayLike, " batch"]
    mask: Float[ArrayLike, " batch"]


class Learner(NamedTuple):
    """A model with all that lies between raw examples and a loss. Pure functions."""

    init: Callable[[PRNGKeyArray], Variables]
    """key -> initial variables."""
    loss: Callable[[Variables, Batch, PRNGKeyArray], tuple[Float[Array, ""], Variables]]
    """(variables, batch, key) -> (mean loss of the real rows, new model state), in
    training mode: with augmentation, dropout and batch statistics."""
    predict: Callable[[Variables, Any], Float[Array, "batch classes"]]
    """(variables, raw inputs) -> logits, in evaluation mode."""
    represent: Callable[[Variables, Any], Float[Array, "batch features"]] | None = None
    """(variables, raw inputs) -> what the model's layer `classifier` is given, in
    evaluation mode, or the logits of a model without one; None: `predict` will do."""


class Normalisation(NamedTuple):
    """(pixels - mean) / std per channel, pixels of uint8 pictures being in 0..1.

    Without constants inputs of any kind stay as they are.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Inputs) -> Inputs:
        if not self.mean:
            return inputs
        mean, std = (jnp.asarray(v, inputs.dtype) for v in (self.mean, self.std))
        return (inputs - mean) / std


# Gradients of a mean loss are small; multiplied by this they stay normal in float16.
# A power of two, so that dividing by it later is exact.
_FLOAT16_LOSS_SCALE = 2.0**10

# How a function is compiled that runs once: to the same bits in a third of the time (of
# the initial weights of ResNet-20: 2.5 in place of 7.7 s of processor time).
_RUN_ONCE = {"xla_backend_optimization_level": 1}


def make_learner(
    model: nn.Module,
    example: PyTree,
    *,
    normalisation: Callable[[Any], Any] | None = None,
    augmentation: Callable[[PRNGKeyArray, Any], Any] | None = None,
    label_smoothing: int | float = 0.0,
    dtype: str = "float32",
    trainable: Trainable = "all",
) -> Learner:
    """Binds a model to its input processing, loss and precision.

    Args:
        model: called as `model(inputs, train, mask)`, gives logits. `mask` is that of
            the batch in training, for statistics over it; None in evaluation. A model
            may do without the two, as `model(inputs)`, or without one.
        example: the raw input of one example, without a batch axis: arrays or
            `jax.ShapeDtypeStruct`s. Inputs may be any pytree whose leaves have the
            examples as first axis (say, features and lengths). uint8 leaves are pixels
            and scaled to 0..1.
        normalisation: applied to the (scaled) inputs, after augmentation.
        augmentation: applied to the (scaled) inputs in training, with a key.
        label_smoothing: share of the target spread evenly over all classes.
        dtype: of the computation: float32, bfloat16, float16 or float64. Parameters,
            their gradients, model state and loss are float32 (all float64 under
            float64). In float16 the gradient is scaled on its way back, see
            `_FLOAT16_LOSS_SCALE`.
        trainable: "all", or "head" for the layer `classifier` alone: what it is given
            is then computed as in evaluation, without dropout and by the running batch
            statistics, also in training. `predict` and `represent` take variables in
            parts and whole ones alike.

    Raises:
        UserError: float64 while JAX has 64-bit numbers switched off; a head to be
            trained that the model does not have.
        TypeError: the model is no Linen module, or its call takes something else.
    """
    takes = _arguments_of(model)
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise UserError(
            f"dtype = {dtype!r}: takes float32, bfloat16, float16 or float64"
        )
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError("dtype = 'float64' needs 64-bit numbers: set JAX_ENABLE_X64=1")
    compute = jnp.dtype(dtype)
    wide = jnp.promote_types(compute, jnp.float32)
    gradient_scale = _FLOAT16_LOSS_SCALE if dtype == "float16" else 1.0
    only_head = trainable == "head"

    def scale_pixels(inputs):
        def scale(leaf):
            leaf = jnp.asarray(leaf)
            if leaf.dtype == jnp.uint8:
                return leaf.astype(wide) / 255
            return leaf.astype(wide) if _is_float(leaf) else leaf

        return jax.tree.map(scale, inputs)

    def finish(inputs):
        if normalisation is not None:
            inputs = normalisation(inputs)
        return _cast(inputs, compute)

    def apply_model(variables, inputs, train, mask, **kwargs):
        variables = whole(variables)
        params = variables["params"]
        # On the way back the last, in wide numbers: narrow ones come scaled this far.
        if gradient_scale != 1:
            params = _scale_gradient(params, 1 / gradient_scale)
        if compute != wide:
            params = _cast(params, compute)
        variables = {**variables, "params": params}
        return model.apply(variables, inputs, *takes(train, mask), **kwargs)

    def widen(outputs):
        outputs = outputs.astype(wide)
        if gradient_scale != 1:
            outputs = _scale_gradient(outputs, gradient_scale)
        return outputs

    def make_variables(key):
        inputs = jax.tree.map(
            lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), example
        )
        params, dropout = jax.random.split(key)
        inputs = _cast(finish(scale_pixels(inputs)), wide)
        rngs = {"params": params, "dropout": dropout}
        variables = model.init(rngs, inputs, *takes(False, None))
        variables = _cast(dict(variables), wide)
        return head_alone(variables) if only_head else variables

    compiled = jax.jit(make_variables, compiler_options=_RUN_ONCE)

    def init(key: PRNGKeyArray) -> Variables:
        # Only the outermost function may say how it is compiled.
        inside = isinstance(key, jax.core.Tracer)
        return make_variables(key) if inside else compiled(key)

    def loss(
        variables: Variables, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Variables]:
        augment, dropout = jax.random.split(key)
        batch = jax.tree.map(jnp.asarray, batch)
        inputs = scale_pixels(batch.inputs)
        if augmentation is not None:
            inputs = augmentation(augment, inputs)
        state = [name for name in moving(variables) if name != "params"]
        logits, new_state = apply_model(
            variables,
            finish(inputs),
            not only_head,
            batch.mask,
            mutable=state,
            rngs={"dropout": dropout},
        )
        losses = cross_entropy(widen(logits), batch.labels, label_smoothing)
        return masked_mean(losses, batch.mask), dict(new_state)

    def predict(variables: Variables, inputs: Any) -> Float[Array, "batch classes"]:
        logits = apply_model(variables, finish(scale_pixels(inputs)), False, None)
        return widen(logits)

    def represent(variables: Variables, inputs: Any) -> Float[Array, "batch features"]:
        features = []

        def note(call, args, kwargs, context):
            if context.module.name == "classifier":
                features.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            logits = predict(variables, inputs)
        return widen(features[-1]) if features else logits

    return Learner(init, loss, predict, represent)


def _arguments_of(model: nn.Module) -> Callable[[Any, Any], tuple]:
    """(train, mask) -> those of them that the model's call takes after its inputs."""
    if isinstance(model, nnx.Module):
        raise TypeError(
            f"{type(model).__name__} is an NNX module, and clients need Linen's init "
            "and apply: give flax.nnx.bridge.to_linen(<its class>, <its arguments>)"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{model!r}: takes an instance of a flax.linen.Module, as "
            "convnet.Model(num_classes)"
        )
    # A bridge from NNX takes whatever the module behind it does.
    called = getattr(model, "nnx_class", type(model)).__call__
    parameters = list(inspect.signature(called).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters):
        return lambda train, mask: (train, mask)
    rest = [each for each in parameters if each.kind in kinds][2:]
    known = {"train": 0, "mask": 1}
    chosen = [known.get(each.name) for each in rest]
    if chosen in ([], [0], [1], [0, 1], [1, 0]):
        return lambda train, mask: tuple((train, mask)[which] for which in chosen)
    names = ", ".join(each.name for each in rest)
    raise TypeError(
        f"{type(model).__name__}.__call__ takes {names} after its inputs; it may take "
        "`train` and `mask`, or nothing"
    )


def _is_float(leaf) -> bool:
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)


def _cast(tree, dtype):
    def cast(leaf):
        return leaf.astype(dtype) if _is_float(leaf) else leaf

    return jax.tree.map(cast, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scale_gradient(tree, factor):
    """The identity, whose gradient is multiplied by `factor`."""
    return tree


_scale_gradient.defvjp(
    lambda tree, factor: (tree, None),
    lambda factor, _, gradient: (
        jax.tree.map(lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), gradient),
    ),
)


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    label_smoothing: int | float = 0.0,
) -> Float[Array, " batch"]:
    """-sum_c q_c log softmax(logits)_c; q = (1 - s) one_hot(label) + s / classes."""
    log_probabilities = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    if not label_smoothing:
        return -own
    spread = log_probabilities.mean(-1)
    return -((1 - label_smoothing) * own + label_smoothing * spread)


def masked_mean(
    values: Float[Array, " batch"], mask: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Mean of the values where the mask is 1; 0 when it is 0 everywhere.

    Values under mask 0 may be anything, also NaN.
    """
    mask = mask.astype(values.dtype)
    total = jnp.where(mask > 0, values * mask, 0).sum()
    return total / jnp.maximum(mask.sum(), 1)


class TrainState(NamedTuple):
    """What a training step changes."""

    variables: Variables
    optimizer_state: optax.OptState
    step: Int32[Array, ""]
    """Steps done."""


def init_state(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    key: PRNGKeyArray,
) -> TrainState:
    """Fresh variables and optimizer state."""
    variables = learner.init(key)
    optimizer_state = optimizer.init(variables["params"])
    return TrainState(variables, optimizer_state, jnp.zeros((), jnp.int32))


def train_step(
    learner: Learner,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: PRNGKeyArray,
) -> tuple[TrainState, Float[Array, ""]]:
    """One step of the optimizer on one batch; returns the loss before the step.

    A batch sharded over devices gives the same step: the loss is a mean over all real
    rows, wherever they are.
    """
    variables, optimizer_state, step = state

    def loss(params):
        return learner.loss({**variables, "params": params}, batch, key)

    (value, model_state), gradient = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
    )
    updates, optimizer_state = optimizer.update(
        gradient, optimizer_state, variables["params"]
    )
    params = optax.apply_updates(variables["params"], updates)
    variables = {**frozen(variables), "params": params, **model_state}
    return TrainState(variables, optimizer_state, step + 1), value


def make_schedule(
    name: str, learning_rate: int | float, steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Learning rate by step: `constant`, or `cosine` down to 0 at `steps`.

    With `warmup_steps` w it first grows linearly: step i < w has (i + 1) / (w + 1) of
    the learning rate, so that no step is wasted on zero.

    Raises:
        UserError: a schedule of another name.
    """
    if name == "constant":
        main = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        decay_steps = max(steps - warmup_steps, 1)
        main = optax.cosine_decay_schedule(learning_rate, decay_steps)
    else:
        raise UserError(f"schedule = {name!r}: takes cosine or constant")
    if not warmup_steps:
        return main
    first = learning_rate / (warmup_steps + 1)
    warmup = optax.linear_schedule(first, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, main], [warmup_steps])


def make_optimizer(
    name: str,
    learning_rate: int | float | optax.Schedule,
    *,
    momentum: int | float = 0.9,
    weight_decay: int | float = 0.0,
    clip_norm: int | float = 0.0,
) -> optax.GradientTransformation:
    """`adamw` or `sgd`, as PyTorch defines them.

    Weight decay acts on every parameter; in `adamw` it is decoupled (arXiv 1711.05101)
    and multiplied by the learning rate, in `sgd` it is added to the gradient before
    momentum. `clip_norm` > 0 first scales gradients whose global norm is larger.

    Raises:
        UserError: an optimizer of another name.
    """
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name == "adamw":
        parts.append(optax.adamw(learning_rate, weight_decay=weight_decay))
    elif name == "sgd":
        if weight_decay:
            parts.append(optax.add_decayed_weights(weight_decay))
        parts.append(optax.sgd(learning_rate, momentum=momentum or None))
    else:
        raise UserError(f"optimizer = {name!r}: takes adamw or sgd")
    return optax.chain(*parts)


def example_of(inputs: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shape and type of one example of a data set, as `make_learner` takes it."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs
    )


def number_of_parameters(variables: Variables) -> int:
    """Trained numbers in the model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def operations(
    learner: Learner, variables: Variables, example: PyTree, batch_size: int
) -> tuple[float, float]:
    """Floating-point operations of a gradient and of a prediction.

    Args:
        variables: their shapes.
        example: shape and type of one, as `example_of` gives it.
        batch_size: examples at once.
    """

    def gradient(params, others, batch, key):
        def loss(params):
            return learner.loss({**others, "params": params}, batch, key)

        return jax.grad(loss, has_aux=True)(params)

    label, weight = (
        jax.ShapeDtypeStruct((batch_size,), dtype) for dtype in (jnp.int32, jnp.float32)
    )
    inputs = planning.rows(example, batch_size)
    params, others = variables["params"], {**variables}
    del others["params"]
    key = jax.eval_shape(jax.random.key, 0)
    return (
        planning.flops(gradient, params, others, Batch(inputs, label, weight), key),
        planning.flops(learner.predict, variables, inputs),
    )
