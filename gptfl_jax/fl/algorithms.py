"""Federated algorithms: local objective, combination of updates, server optimizer.

Every algorithm is `compose(rule, local, server, aggregation=...)`, three replaceable
parts, and FedAvg is the identity in all of them. Notation: x the server's weights, y_i
those of client i after its local steps, d_i = y_i - x its update, p_i its weight in the
cohort (sum 1), eta the local learning rate, g a gradient at y.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32, PRNGKeyArray, PyTree

from gptfl_jax.data.partition import FederatedData
from gptfl_jax.fl import clients, sampling
from gptfl_jax.fl.aggregation import Aggregation, weighted_mean
from gptfl_jax.fl.clients import LocalRule, LocalTraining, plain_rule
from gptfl_jax.fl.diagnostics import (
    Diversity,
    RoundMetrics,
    distance,
    diversity,
    mean_loss,
    norm_summary,
    size_in_bytes,
    squared_norm,
)
from gptfl_jax.training import Learner, Variables


class ServerState(NamedTuple):
    """All that one round hands to the next."""

    variables: Variables
    """The global model."""
    optimizer_state: optax.OptState
    """Of the server optimizer."""
    shared: Any
    """What else the server keeps and sends, as a control variate."""
    start: PyTree
    """Params at the start of the run, from which the drift is measured."""
    round: Int[Array, ""]
    """Rounds done."""


class Algorithm(NamedTuple):
    """A federated algorithm, in the shape of an optax transformation."""

    init: Callable[[Variables, int], ServerState]
    """(variables, number of clients) -> state before the first round."""
    round: Callable[
        [ServerState, FederatedData, Int32[Array, " cohort"], PRNGKeyArray],
        tuple[ServerState, RoundMetrics],
    ]
    """(state, data, cohort, key) -> (state after the round, its metrics).

    Compiled once for a cohort size, whichever clients are in it."""


def compose(
    rule: LocalRule,
    local: LocalTraining,
    server: optax.GradientTransformation,
    *,
    weighting: str = "examples",
    aggregation: Aggregation | None = None,
    execution: str = "auto",
    mesh: Mesh | None = None,
    lanes: int = 0,
    diagnostics: bool = True,
    dropout: float = 0.0,
) -> Algorithm:
    """An algorithm from its three parts.

    Clients whose update is not finite are left out and counted, and the weights of the
    others add up to 1 again. When no update counts, the state stays as it is.

    Args:
      rule: what clients minimise, how they step, what they send.
      local: optimizer, batches and epochs of the clients.
      server: takes the negative mean update as a pseudo-gradient of the params. It
        never sees model state (batch statistics), which is averaged.
      weighting: "examples" or "uniform" mean of the updates.
      aggregation: in place of that mean, another of `gptfl_jax.fl.aggregation`.
      execution: "packed", "vmap" or "auto", see `gptfl_jax.fl.clients`.
      mesh: of `clients.clients_mesh`; None: one device.
      lanes: clients side by side under "vmap"; 0: all.
      diagnostics: whether to measure diversity, norms and drift.
      dropout: probability that a client of a cohort fails to report.

    Raises:
      ValueError: an unknown weighting or execution, or a value out of range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: takes a number in [0, 1)")
    combine = weighted_mean(weighting) if aggregation is None else aggregation
    train = clients.make_cohort_trainer(
        rule,
        local,
        combine,
        execution=execution,
        mesh=mesh,
        lanes=lanes,
        diagnostics=diagnostics,
    )

    def init(variables: Variables, num_clients: int) -> ServerState:
        del num_clients
        params, _ = clients.split(variables)
        return ServerState(
            variables=variables,
            optimizer_state=server.init(params),
            shared=rule.init_shared(params),
            start=params,
            round=jnp.zeros((), jnp.int32),
        )

    @jax.jit
    def round(
        state: ServerState,
        data: FederatedData,
        cohort: Int32[Array, " cohort"],
        key: PRNGKeyArray,
    ) -> tuple[ServerState, RoundMetrics]:
        # Clients fold their number into the key; these two are no client's number.
        dropout_key = jax.random.fold_in(key, 2**32 - 1)
        noise_key = jax.random.fold_in(key, 2**32 - 2)
        reports = None
        if dropout:
            reports = sampling.reports(dropout_key, cohort, dropout)
        described = clients.describe(data, cohort, key, local, reports)
        result = train(
            state.variables,
            state.shared,
            (),
            data,
            described,
            state.round,
            noise_key,
        )
        population = combine.weight(data.offsets[1:] - data.offsets[:-1]).sum()
        new, update = _server_step(
            rule, server, state, result, result.weight / population
        )
        return new, _measure(new, update, result, described, state, diagnostics)

    return Algorithm(init, round)


def _server_step(rule, server, state, result, share):
    """The state after a round, and the update that the server optimizer was given."""
    params, model_state = clients.split(state.variables)
    update, shared = rule.receive(result.message, state.shared, share)
    pseudo_gradient = jax.tree.map(jnp.negative, update)
    step, optimizer_state = server.update(
        pseudo_gradient, state.optimizer_state, params
    )
    model_state = jax.tree.map(
        lambda x, d: (x + d).astype(x.dtype), model_state, result.message.model_state
    )
    new = state._replace(
        variables={"params": optax.apply_updates(params, step), **model_state},
        optimizer_state=optimizer_state,
        shared=shared,
    )
    counts = result.stats.weights.sum() > 0
    new = jax.tree.map(lambda x, old: jnp.where(counts, x, old), new, state)
    return new._replace(round=state.round + 1), update


def _measure(new, update, result, cohort, state, diagnostics):
    stats, spread = result.stats, result.spread
    sizes = cohort.size[:-1]
    reported = sizes > 0
    counts = reported & stats.finite
    nan = jnp.full((), jnp.nan)
    variety, norms = Diversity(nan, nan, nan), (nan, nan, nan, nan)
    mean_norm = drift = nan
    if diagnostics:
        trained = counts & (stats.steps > 0)
        variety = diversity(spread, stats.norm, trained)
        norms = norm_summary(stats.norm, trained)
        mean_norm = jnp.sqrt(squared_norm(update))
        drift = distance(new.variables["params"], new.start)
    down = size_in_bytes((state.variables, state.shared))
    up = size_in_bytes(result.message)
    return RoundMetrics(
        train_loss=mean_loss(stats),
        clients=counts.sum(),
        dropped=jnp.sum(reported & ~stats.finite),
        failed=jnp.any(reported) & ~jnp.any(counts),
        examples=jnp.sum(jnp.where(counts, sizes, 0)),
        steps=stats.steps.sum(),
        bytes_down=jnp.asarray(float(down) * sizes.shape[0]),
        bytes_up=reported.sum() * jnp.asarray(float(up)),
        gradient_diversity=variety.gradient_diversity,
        inverse_gradient_diversity=variety.inverse_gradient_diversity,
        cosine_mean=variety.cosine_mean,
        update_norm_mean=norms[0],
        update_norm_std=norms[1],
        update_norm_min=norms[2],
        update_norm_max=norms[3],
        mean_update_norm=mean_norm,
        drift=drift,
    )


_IDENTITY = optax.scale(-1.0)
"""The server optimizer of FedAvg: x + mean update."""


def fedavg(learner: Learner, local: LocalTraining, **options: Any) -> Algorithm:
    """Federated averaging: x <- x + sum_i p_i d_i.

    Communication-Efficient Learning of Deep Networks from Decentralized Data
    (arXiv 1602.05629). Clients start from x and take plain optimizer steps; p_i is the
    client's share of the cohort's examples. The original GPT-FL's mean is uniform:
    `weighting="uniform"`.

    Args:
      learner: gives the loss that clients minimise.
      local: how they train.
      **options: keywords of `compose`.
    """
    return compose(plain_rule(learner), local, _IDENTITY, **options)


def fedprox(
    learner: Learner, local: LocalTraining, mu: float, **options: Any
) -> Algorithm:
    """FedAvg whose clients stay near the server: they minimise f_i(y) + mu/2 |y - x|^2.

    Federated Optimization in Heterogeneous Networks (arXiv 1812.06127). The gradient
    step is along g + mu (y - x). The original GPT-FL penalises the norm, not its
    square, which pulls as hard near x as far from it.

    Raises:
      ValueError: a negative mu.
    """
    if mu < 0:
        raise ValueError(f"mu {mu}: takes a number >= 0")

    def correct(gradient, params, context):
        if mu == 0:
            return gradient
        return jax.tree.map(
            lambda g, y, x: g + mu * (y - x),
            gradient,
            params,
            context.variables["params"],
        )

    rule = plain_rule(learner)._replace(correct=correct)
    return compose(rule, local, _IDENTITY, **options)


def fedopt(
    learner: Learner,
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation,
    **options: Any,
) -> Algorithm:
    """FedAvg with a server optimizer: x <- x + optimizer(-sum_i p_i d_i).

    Adaptive Federated Optimization (arXiv 2003.00295): FedAdam, FedYogi and FedAdagrad
    are `optax.adam`, `optax.yogi` and `optax.adagrad`; the paper's adaptivity tau is
    their eps (1e-3 there, far above optax's 1e-8). `optax.sgd(1.0)` is FedAvg. Batch
    statistics are averaged, and never seen by the optimizer, which in the original
    GPT-FL moved them as if they were weights.
    """
    return compose(plain_rule(learner), local, server_optimizer, **options)
