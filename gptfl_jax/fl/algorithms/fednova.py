"""FedNova: updates normalised by the steps taken."""

from typing import Any

import jax

from gptfl_jax import rules
from gptfl_jax.fl.client_rules import difference, plain_rule
from gptfl_jax.fl.composition import (
    IDENTITY,
    Algorithm,
    compose,
    is_linear,
    positive,
    proximal,
)
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import Learner


def fednova(
    learner: Learner,
    local: LocalTraining,
    mu: rules.NonNegative = 0.0,
    **options: Any,
) -> Algorithm:
    """FedNova: clients that take more steps do not count for more.

        x <- x + (sum_i p_i a_i) sum_i p_i d_i / a_i

    with a_i the client's gradient mass, |a_i|_1 in the paper times eta, which cancels:
    K under plain SGD, sum_k (1 - rho^k) / (1 - rho) under momentum rho,
    sum_k (1 - eta mu)^k with a proximal term mu. It is measured, by taking the client's
    steps on a number with gradient 1, hence right for any optimizer that is linear in
    the gradients, and for schedules. The server goes sum_i p_i a_i far: with equal
    steps at all clients this is FedAvg.

    Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization
    (arXiv 2007.07481). Norms and diversity in the metrics are of d_i / a_i, which is
    what clients send.

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        mu: proximal weight, as of FedProx.
        **options: keywords of `compose`.

    Raises:
        ValueError: a negative mu, or a client optimizer not linear in the gradients.
    """
    if mu < 0:
        raise ValueError(f"mu {mu}: takes a number >= 0")
    if not is_linear(local):
        raise ValueError("fednova needs SGD at the clients (momentum will do)")

    def report(context, variables, measured):
        message = difference(variables, context.variables)
        normalised = jax.tree.map(
            lambda d: d / positive(measured.mass).astype(d.dtype), message.update
        )
        return message._replace(update=normalised, extra=measured.mass), ()

    def receive(message, shared, share):
        mass = message.extra
        return jax.tree.map(lambda d: d * mass.astype(d.dtype), message.update), shared

    rule = plain_rule(learner)._replace(
        correct=proximal(mu),
        report=report,
        receive=receive,
        shadow=lambda x: mu * x - 1.0,
    )
    return compose(rule, local, IDENTITY, **options)
