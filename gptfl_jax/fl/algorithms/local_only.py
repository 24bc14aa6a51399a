"""Clients that train alone: the baseline of every federation."""

from typing import Any

from gptfl_jax.fl.client_rules import difference, plain_rule
from gptfl_jax.fl.composition import IDENTITY, Algorithm, compose, zeros_like
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.trainable import moving
from gptfl_jax.training import Learner


def local_only(learner: Learner, local: LocalTraining, **options: Any) -> Algorithm:
    """Local training: every client goes on from its own weights, nothing is sent.

    The baseline that says what a federation is worth to its clients. The server's
    weights, from which a client starts in its first round, stay as they are; test those
    that `Algorithm.start` gives.

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        **options: keywords of `compose`.
    """

    def report(context, variables, measured):
        message = difference(variables, context.own)
        nothing = zeros_like(message.model_state)
        return message._replace(model_state=nothing), moving(variables)

    rule = plain_rule(learner)._replace(
        init_own=lambda context: moving(context.variables),
        begin=lambda context: {**context.variables, **context.own},
        report=report,
        receive=lambda message, shared, share: (zeros_like(message.update), shared),
        sent_down=lambda variables, shared: (),
        sent_up=lambda message: (),
    )
    return compose(rule, local, IDENTITY, **options)._replace(aggregates=False)
