"""FedDyn: dynamic regularisation."""

from typing import Any

import jax
import jax.numpy as jnp

from gptfl_jax import rules
from gptfl_jax.fl.algorithms.fedavg import fedavg
from gptfl_jax.fl.client_rules import difference, plain_rule
from gptfl_jax.fl.composition import IDENTITY, Algorithm, compose, proximal, zeros_like
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import Learner


def feddyn(
    learner: Learner,
    local: LocalTraining,
    alpha: rules.NonNegative = 0.01,
    **options: Any,
) -> Algorithm:
    """FedDyn: a dynamic regulariser makes clients' optima agree with the server's.

        client:  steps along g - h_i + alpha (y - x),  then h_i <- h_i - alpha d_i
        server:  h <- h - alpha s sum_i p_i d_i,  x <- x + sum_i p_i d_i - h / alpha

    with s the cohort's share of the population's weight (|S| / N and p_i = 1 / |S| in
    the paper: weighting "uniform"). The server keeps h / alpha, which it does not send.
    alpha = 0 is taken as FedAvg, h / alpha as 0.

    Federated Learning Based on Dynamic Regularization (arXiv 2111.04263).

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        alpha: weight of the dynamic regulariser; 0: FedAvg.
        **options: keywords of `compose`.

    Raises:
        ValueError: a negative alpha.
    """
    if alpha < 0:
        raise ValueError(f"alpha {alpha}: takes a number >= 0")
    if alpha == 0:
        return fedavg(learner, local, **options)
    pull = proximal(alpha)

    def correct(gradient, params, context):
        gradient = jax.tree.map(
            lambda g, h: g - h.astype(g.dtype), gradient, context.own
        )
        return pull(gradient, params, context)

    def report(context, variables, measured):
        message = difference(variables, context.variables)
        own = jax.tree.map(lambda h, d: h - alpha * d, context.own, message.update)
        return message, own

    def receive(message, shared, share):
        shared = jax.tree.map(
            lambda h, d: h - share.astype(h.dtype) * d, shared, message.update
        )
        return jax.tree.map(jnp.subtract, message.update, shared), shared

    rule = plain_rule(learner)._replace(
        init_shared=zeros_like,
        init_own=lambda context: zeros_like(context.variables["params"]),
        correct=correct,
        report=report,
        receive=receive,
        sent_down=lambda variables, shared: variables,
    )
    return compose(rule, local, IDENTITY, **options)
