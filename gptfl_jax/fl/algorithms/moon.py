"""MOON: model-contrastive training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gptfl_jax import rules
from gptfl_jax.fl.algorithms.fedavg import fedavg
from gptfl_jax.fl.client_rules import difference, plain_rule
from gptfl_jax.fl.composition import IDENTITY, Algorithm, compose
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.trainable import moving
from gptfl_jax.training import Batch, Learner, Variables, masked_mean


def moon(
    learner: Learner,
    local: LocalTraining,
    mu: rules.NonNegative = 1.0,
    temperature: rules.Positive = 0.5,
    represent: Callable[[Variables, Any], Array] | None = None,
    **options: Any,
) -> Algorithm:
    """MOON: representations near the server's, and away from the client's last ones.

        loss + mu mean -log(e^{a/T} / (e^{a/T} + e^{b/T})),
        a = cos(z, z_server), b = cos(z, z_previous)

    z is the representation of an example by the model in training, z_server by the
    weights the client was sent, z_previous by those it ended its last round with. In a
    client's first round these are the same, and the term has no gradient.

    Model-Contrastive Federated Learning (arXiv 2103.16257).

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        mu: weight of the contrastive term; 0: FedAvg.
        temperature: T, of the contrastive term.
        represent: (variables, raw inputs) -> [batch, features]; by default
            `learner.represent`, what the last layer is given, or else the logits. The
            paper puts a projection head of two layers there, and takes its output.
        **options: keywords of `compose`.

    Raises:
        ValueError: a negative mu, or a temperature that is not positive.
    """
    if mu < 0 or temperature <= 0:
        raise ValueError(
            f"mu {mu}, temperature {temperature}: takes mu >= 0 and temperature > 0"
        )
    if mu == 0:
        return fedavg(learner, local, **options)
    represent = represent or learner.represent or learner.predict

    def loss(variables, batch: Batch, key, context):
        value, model_state = learner.loss(variables, batch, key)
        z = represent(variables, batch.inputs)
        near = _cosine(z, represent(context.variables, batch.inputs))
        previous = {**context.variables, **context.own}
        far = _cosine(z, represent(previous, batch.inputs))
        contrast = jax.nn.softplus((far - near) / temperature)
        return value + mu * masked_mean(contrast, batch.mask), model_state

    rule = plain_rule(learner)._replace(
        init_own=lambda context: moving(context.variables),
        loss=loss,
        report=lambda context, variables, measured: (
            difference(variables, context.variables),
            moving(variables),
        ),
    )
    return compose(rule, local, IDENTITY, **options)


def _cosine(a: Array, b: Array) -> Array:
    """Cosine similarity of the rows, with finite gradients at 0."""
    square = jnp.sum(a * a, -1) * jnp.sum(b * b, -1)
    return jnp.sum(a * b, -1) * jax.lax.rsqrt(square + 1e-12)
