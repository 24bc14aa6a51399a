"""FedOpt: server optimizers."""

from typing import Any

import optax

from gptfl_jax.fl.clients import LocalTraining, plain_rule
from gptfl_jax.fl.composition import Algorithm, compose
from gptfl_jax.training import Learner


def fedopt(
    learner: Learner,
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation,
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
        server_optimizer: takes the negative mean update as a gradient.
        **options: keywords of `compose`.
    """
    return compose(plain_rule(learner), local, server_optimizer, **options)
