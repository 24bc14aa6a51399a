"""SCAFFOLD: control variates."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from gptfl_jax import rules
from gptfl_jax.fl.client_rules import difference, plain_rule
from gptfl_jax.fl.composition import Algorithm, compose, is_linear, positive, zeros_like
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import Learner


def scaffold(
    learner: Learner,
    local: LocalTraining,
    control: Annotated[str, rules.one_of("path", "start")] = "path",
    server_learning_rate: rules.Positive = 1.0,
    **options: Any,
) -> Algorithm:
    """SCAFFOLD: control variates c (server) and c_i (clients) undo client drift.

        client:  y <- y - eta (g - c_i + c), K steps from x
        I,  control "start":  c_i' = gradient of f_i at x
        II, control "path":   c_i' = c_i - c - d_i / (K eta)
        server:  x <- x + rate sum_i p_i d_i,   c <- c + s sum_i p_i (c_i' - c_i)

    with s the cohort's share of the population's weight: |S| / N under weighting
    "uniform", the paper's, so that c stays the mean of all c_i; under "examples" it is
    their mean by examples, which matches the objective that the weighting implies.

    SCAFFOLD: Stochastic Controlled Averaging for Federated Learning (arXiv 1910.06378).
    K eta is taken as the client's gradient mass, so that with momentum or a schedule
    c_i' under "path" still is the mean of the gradients along the client's path, each
    weighted by how far it moved the client. Control "start" costs one more pass over
    the client's examples.

    Args:
        learner: gives the loss f_i that clients minimise.
        local: how they train.
        control: where control variates come from: the client's "path" (option II), or
            the gradient at its "start" (option I: one more pass over its examples).
        server_learning_rate: rate of the server.
        **options: keywords of `compose`.

    Raises:
        ValueError: an unknown control, or control "path" with a client optimizer that
            is not linear in the gradients, as Adam, where no mean of gradients can be
            read off the update.
    """
    if control not in ("start", "path"):
        raise ValueError(f"control {control!r}: takes 'start' or 'path'")
    if control == "path" and not is_linear(local):
        raise ValueError(
            "scaffold's control 'path' needs SGD at the clients (momentum will do): "
            "take control='start' with this optimizer"
        )

    def correct(gradient, params, context):
        return jax.tree.map(
            lambda g, own, c: g + (c - own).astype(g.dtype),
            gradient,
            context.own,
            context.shared,
        )

    def report(context, variables, measured):
        message = difference(variables, context.variables)
        if control == "start":
            own = measured.start_gradient
        else:
            own = jax.tree.map(
                lambda own, c, d: own - c - d / positive(measured.mass).astype(d.dtype),
                context.own,
                context.shared,
                message.update,
            )
        change = jax.tree.map(jnp.subtract, own, context.own)
        return message._replace(extra=change), own

    def receive(message, shared, share):
        shared = jax.tree.map(
            lambda c, change: c + share.astype(c.dtype) * change, shared, message.extra
        )
        return message.update, shared

    rule = plain_rule(learner)._replace(
        init_shared=zeros_like,
        init_own=lambda context: zeros_like(context.variables["params"]),
        correct=correct,
        report=report,
        receive=receive,
        shadow=(lambda x: -1.0) if control == "path" else None,
        start_gradient=control == "start",
    )
    return compose(rule, local, optax.sgd(server_learning_rate), **options)
