"""FedAvg, and what differs from it by one term: FedAvgM and FedProx."""

from typing import Any

import optax

from gptfl_jax import rules
from gptfl_jax.fl.client_rules import plain_rule
from gptfl_jax.fl.composition import IDENTITY, Algorithm, compose, proximal
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import Learner


def fedavg(learner: Learner, local: LocalTraining, **options: Any) -> Algorithm:
    """FedAvg: federated averaging, x <- x + sum_i p_i d_i.

    Communication-Efficient Learning of Deep Networks from Decentralized Data
    (arXiv 1602.05629). Clients start from x and take plain optimizer steps; p_i is the
    client's share of the cohort's examples. The original GPT-FL's mean is uniform:
    `weighting="uniform"`.

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        **options: keywords of `compose`.
    """
    return compose(plain_rule(learner), local, IDENTITY, **options)


def fedavgm(
    learner: Learner,
    local: LocalTraining,
    beta: rules.ProperFraction = 0.9,
    server_learning_rate: rules.Positive = 1.0,
    nesterov: bool = False,
    **options: Any,
) -> Algorithm:
    """FedAvgM: FedAvg with server momentum.

        v <- beta v + sum_i p_i d_i,   x <- x + rate v

    Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification (arXiv 1909.06335), where v is not damped by 1 - beta: with beta =
    0.9 the server moves up to ten times as far as FedAvg's.

    Args:
        learner: gives the loss that clients minimise.
        local: how they train.
        beta: momentum of the server.
        server_learning_rate: rate of the server.
        nesterov: whether the server looks a step of v ahead.
        **options: keywords of `compose`.

    Raises:
        ValueError: beta outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta {beta}: takes a number in [0, 1)")
    server = optax.sgd(server_learning_rate, momentum=beta or None, nesterov=nesterov)
    return compose(plain_rule(learner), local, server, **options)


def fedprox(
    learner: Learner,
    local: LocalTraining,
    mu: rules.NonNegative = 0.01,
    **options: Any,
) -> Algorithm:
    """FedProx: FedAvg whose clients stay near the server.

        clients minimise f_i(y) + mu/2 |y - x|^2

    Federated Optimization in Heterogeneous Networks (arXiv 1812.06127). The gradient
    step is along g + mu (y - x). The original GPT-FL penalises the norm, not its
    square, which pulls as hard near x as far from it.

    Args:
        learner: gives the loss f_i that clients minimise.
        local: how they train.
        mu: proximal weight; 0: FedAvg.
        **options: keywords of `compose`.

    Raises:
        ValueError: a negative mu.
    """
    if mu < 0:
        raise ValueError(f"mu {mu}: takes a number >= 0")

    rule = plain_rule(learner)._replace(correct=proximal(mu))
    return compose(rule, local, IDENTITY, **options)
