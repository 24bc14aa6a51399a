"""FedOpt: server optimizers."""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import optax

from gptfl_jax import rules
from gptfl_jax.fl.client_rules import plain_rule
from gptfl_jax.fl.composition import Algorithm, compose
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import Learner


def fedopt(
    learner: Learner,
    local: LocalTraining,
    server_optimizer: Annotated[
        str | optax.GradientTransformation, rules.OPTAX_NAME
    ] = "adam",
    server_learning_rate: rules.Positive = 1e-3,
    server_options: rules.Keywords | None = None,
    **options: Any,
) -> Algorithm:
    """FedOpt: FedAvg with a server optimizer, x <- x + optimizer(-sum_i p_i d_i).

    Adaptive Federated Optimization (arXiv 2003.00295): FedAdam, FedYogi and FedAdagrad
    are `optax.adam`, `optax.yogi` and `optax.adagrad`. The paper's adaptivity tau (1e-3
    there, far above the 1e-8 of optax.adam) is the eps of the first two; the eps of
    adagrad stands under the root, in the place of tau^2. Unlike the paper's, optax's
    Adam and Yogi correct the bias of their moments, and its second moments do not start
    at tau^2. `optax.sgd(1.0)` is FedAvg. Batch statistics are averaged, and never seen
    by the optimizer, which in the original GPT-FL moved them as if they were weights.

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        server_optimizer: takes the negative mean update as a gradient: an optimizer of
            optax, by its name or made.
        server_learning_rate: rate of the server, of an optimizer by name.
        server_options: further keywords of an optimizer by name, as {"eps": 1e-3}.
        **options: keywords of `compose`.

    Raises:
        ValueError: a keyword that the optimizer does not take.
    """
    if isinstance(server_optimizer, str):
        server_optimizer = _make(
            server_optimizer, server_learning_rate, server_options or {}
        )
    return compose(plain_rule(learner), local, server_optimizer, **options)


def _make(
    name: str, learning_rate: int | float, options: Mapping[str, Any]
) -> optax.GradientTransformation:
    function = getattr(optax, name)
    taken = [*inspect.signature(function).parameters]
    taken.remove("learning_rate")
    for option in options:
        if option not in taken:
            raise ValueError(
                f"server_options {option!r}: optax.{name} takes no such keyword, but "
                + ", ".join(taken)
            )
    return function(learning_rate=learning_rate, **options)
