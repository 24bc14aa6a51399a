"""What every federated algorithm is composed of, and the round that follows from it.

An algorithm is `compose(rule, local, server, aggregation=...)`: local objective,
combination of updates and server optimizer are replaceable parts, and FedAvg is the
identity in all of them. `gptfl_jax.fl.algorithms` has the notation.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, PyTree

from gptfl_jax import devices, planning
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import sampling
from gptfl_jax.fl.aggregation import mean
from gptfl_jax.fl.client_rules import Context, LocalRule, split
from gptfl_jax.fl.client_states import ClientStates, stack, unstack
from gptfl_jax.fl.cohorts import describe
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
from gptfl_jax.fl.execution import (
    AXIS,
    Part,
    make_cohort_trainer,
    replicated,
    sum_over_devices,
)
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.normalisation import apply_policy
from gptfl_jax.fl.sums import Aggregation, accumulator
from gptfl_jax.trainable import frozen, moving
from gptfl_jax.training import Variables


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
    own: Any
    """`ClientStates` of an algorithm whose clients keep state; () of others."""


def takes_repeats(state: ServerState) -> bool:
    """Whether a client may be in a cohort twice.

    Not where both the clients and the server keep state: c of SCAFFOLD would no longer
    be the mean of all c_i, nor h of FedDyn.
    """
    return not (state.own and jax.tree.leaves(state.shared))


class LoweredRound(NamedTuple):
    """What a round compiles, for arrays of some shapes."""

    state: ServerState
    """Shapes, on the devices where rounds leave them."""
    programs: dict[str, jax.stages.Lowered]
    """By what they do."""
    bytes_down: int
    """That a client of the cohort downloads."""
    bytes_up: int
    """That it uploads."""


class Algorithm(NamedTuple):
    """A federated algorithm, in the shape of an optax transformation."""

    init: Callable[[Variables, int], ServerState]
    """(variables, number of clients) -> state before the first round."""
    round: Callable[..., tuple[ServerState, RoundMetrics]]
    """(state, data, cohort, key) -> (state after the round, its metrics); where it
    `takes_rate`, (state, data, cohort, key, rate), or as of `at`.

    Compiled once for a cohort size, whichever clients are in it (and for each length of
    rows that `gptfl_jax.fl.streaming` sends). Where clients keep state, the cohort is
    read on the host, and on several CPU devices a round is several programs: there it
    cannot itself be compiled; where the server keeps some that goes with it, no client
    may be in a cohort twice."""
    lower: Callable[[Variables, FederatedData, int], LoweredRound]
    """(variables, data, cohort size) -> the programs of `round`; shapes in place of
    arrays, as `gptfl_jax.planning.shapes` gives them, the data's on the devices."""
    start: Callable[[ServerState, int], Variables]
    """(state, client) -> the weights that client would start from: the server's, unless
    it keeps some of its own."""
    aggregates: bool = True
    """Whether rounds change the server's weights; False: each client has its own."""

    takes_rate: bool = False
    """Whether rounds take the clients' learning rate; False: their optimizer has it."""

    def at(self, rate: float) -> "Algorithm":
        """With rounds at this learning rate of the clients, where they take one.

        No other rate compiles anything anew.
        """
        if not self.takes_rate:
            return self
        # A float: of a numpy scalar or an int other programs would be compiled.
        return self._replace(round=functools.partial(self.round, rate=float(rate)))


def _combination(weighting: str | None, aggregation: Aggregation | None) -> Aggregation:
    if aggregation is None:
        return mean(weighting or "examples")
    if not isinstance(aggregation, Aggregation):
        raise TypeError(
            f"aggregation {aggregation!r}: takes what a function of "
            "gptfl_jax.fl.aggregation gives, as aggregation.median()"
        )
    if weighting is not None:
        raise ValueError(
            f"weighting {weighting!r} beside an aggregation, which weights by itself: "
            "take one of the two, as aggregation.mean('uniform')"
        )
    return aggregation


def compose(
    rule: LocalRule,
    local: LocalTraining,
    server: optax.GradientTransformation,
    *,
    weighting: str | None = None,
    aggregation: Aggregation | None = None,
    execution: str = "auto",
    mesh: Mesh | None = None,
    lanes: int = 0,
    row_block: int | None = None,
    diagnostics: bool = True,
    dropout: float = 0.0,
    batch_norm: str = "average",
    collectives: bool | None = None,
) -> Algorithm:
    """An algorithm from its three parts.

    Clients whose update is not finite are left out and counted, and the weights of the
    others add up to 1 again. When no update counts, the state stays as it is.

    Args:
        rule: what clients minimise, how they step, what they send.
        local: optimizer, batches and epochs of the clients.
        server: takes the negative mean update as a pseudo-gradient of the params. It
            never sees model state, as batch statistics.
        weighting: "examples" (None) or "uniform" mean of the updates.
        aggregation: in place of that mean, another of `gptfl_jax.fl.aggregation`, which
            weights by itself.
        execution: "packed", "vmap" or "auto", see `gptfl_jax.fl.execution`.
        mesh: of `clients_mesh`; None: one device.
        lanes: clients side by side under "vmap"; 0: `execution.LANES`.
        row_block: see `gptfl_jax.fl.execution.make_cohort_trainer`.
        diagnostics: whether to measure diversity, norms and drift.
        dropout: probability that a client of a cohort fails to report.
        batch_norm: "average", "local" or "freeze", see `gptfl_jax.fl.normalisation`.
        collectives: whether all devices of the mesh meet in an all-reduce, and a round
            is one program; None: unless they are CPU devices.

    Raises:
        ValueError: an unknown weighting or execution, a weighting beside an
            aggregation, or a value out of range.
        TypeError: an aggregation that is none.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout}: takes a number in [0, 1)")
    rule = apply_policy(rule, batch_norm)
    combine = _combination(weighting, aggregation)
    if collectives is None or mesh is None:
        collectives = not devices.apart(mesh)
    home = mesh if collectives else devices.leaders(mesh)
    trainer = make_cohort_trainer(
        rule,
        local,
        combine,
        execution=execution,
        mesh=mesh,
        lanes=lanes,
        row_block=row_block,
        diagnostics=diagnostics,
    )

    def first_own(variables: Variables, shared: Any) -> PyTree:
        return rule.init_own(Context(variables, shared, None))

    def fresh(variables: Variables) -> ServerState:
        params, _ = split(variables)
        shared = rule.init_shared(params)
        own = jax.eval_shape(first_own, variables, shared)
        if jax.tree.leaves(own):
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), own)
            own = ClientStates({}, (jnp.zeros((), bool), zeros))
        else:
            own = ()
        return ServerState(
            variables=variables,
            optimizer_state=server.init(params),
            shared=shared,
            start=params,
            round=jnp.zeros((), jnp.int32),
            own=own,
        )

    def init(variables: Variables, num_clients: int) -> ServerState:
        if isinstance(num_clients, bool) or num_clients < 1:
            raise ValueError(f"num_clients {num_clients}: takes a whole number >= 1")
        # Where rounds leave it, so that the second one is not compiled again.
        return devices.replicate(fresh(variables), home)

    def train_part(
        variables: Variables,
        shared: Any,
        round: Int[Array, ""],
        rows: PyTree,
        data: FederatedData,
        cohort: Int32[Array, " cohort"],
        key: PRNGKeyArray,
        rate: Float[Array, ""] | None,
    ) -> tuple[Part, PyTree, PyTree]:
        """What a device does: (its part, own states of its clients, what all know)."""
        reports = None
        if dropout:
            # Clients fold their number into the key; this is no client's number.
            dropout_key = jax.random.fold_in(key, 2**32 - 1)
            reports = sampling.reports(dropout_key, cohort, dropout)
        described = describe(data, cohort, key, local, reports)
        own = ()
        if rows:
            known, own = rows
            first = first_own(variables, shared)
            own = jax.tree.map(
                lambda x, y: jnp.where(_column(known, x), x, y), own, first
            )
        part, own, table = trainer.train(
            variables, shared, own, data, described, round, rate
        )
        population = combine.weight(data.offsets[1:] - data.offsets[:-1]).sum()
        return part, own, (table, described.size[:-1], population)

    def on_mesh(*arguments):
        part, own, known = train_part(*arguments)
        part = sum_over_devices(part) if collectives else _lifted(part)
        return part, _lifted(own), known

    if mesh is not None:
        by_client, everywhere = P(AXIS), P()
        on_mesh = jax.shard_map(
            on_mesh,
            mesh=mesh,
            in_specs=everywhere,
            out_specs=(everywhere if collectives else by_client, by_client, everywhere),
            check_vma=False,
        )

    def update_server(
        state: ServerState,
        rows: PyTree,
        part: Part,
        own: PyTree,
        known: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[ServerState, PyTree, RoundMetrics]:
        """What follows from the sum of all parts."""
        table, sizes, population = known
        noise_key = jax.random.fold_in(key, 2**32 - 2)
        result = trainer.combine(part, own, table, sizes, noise_key)
        if rows:
            took_part = result.stats.finite & (result.stats.steps > 0)
            rows = _everywhere((rows[0] | took_part, result.own), home)
        new, update = _server_step(
            rule, server, state, result, result.weight / population
        )
        metrics = _measure(rule, new, update, result, sizes, state, diagnostics)
        return _everywhere(new, home), rows, metrics

    @jax.jit
    def round_of_all(state, rows, data, cohort, key, rate):
        train = train_part if mesh is None else on_mesh
        trained = train(
            state.variables, state.shared, state.round, rows, data, cohort, key, rate
        )
        return update_server(state, rows, *trained, key)

    @jax.jit
    def train_apart(*arguments):
        return on_mesh(*arguments)

    def update_apart(state, rows, part, own, known, key):
        def add_up(part):
            part = jax.tree.map(lambda x: x[0], part)
            # Among processes: each has added what its devices brought.
            return sum_over_devices(part) if home.size > 1 else part

        part = jax.shard_map(
            add_up,
            mesh=home,
            in_specs=P(AXIS),
            out_specs=P(),
            check_vma=False,
        )(part)
        return update_server(state, rows, part, own, known, key)

    if not collectives:
        update_apart = jax.jit(update_apart, out_shardings=replicated(home))

    def round_apart(state, rows, data, cohort, key, rate):
        sent = state.variables, state.shared, state.round, rows
        sent = devices.to_everywhere(sent, mesh)
        part, own, known = train_apart(*sent, data, cohort, key, rate)
        part = devices.sum_by_process(part, mesh)
        own = devices.gather_by_process(own, mesh)
        known = devices.from_everywhere(known, mesh)
        return update_apart(state, rows, part, own, known, key)

    run = round_of_all if collectives else round_apart

    def round(
        state: ServerState,
        data: FederatedData,
        cohort: Int32[Array, " cohort"],
        key: PRNGKeyArray,
        rate: Float[Array, ""] | float | None = None,
    ) -> tuple[ServerState, RoundMetrics]:
        if not state.own:
            new, _, metrics = run(state, (), data, cohort, key, rate)
            return new, metrics
        own, ids = state.own, np.asarray(cohort).tolist()
        if len(set(ids)) < len(ids) and not takes_repeats(state):
            raise ValueError(
                "a client is twice in the cohort, and would change the server's state "
                "twice but its own once: draw without replacement for this algorithm"
            )
        rows = stack([own.rows.get(client, own.empty) for client in ids])
        bare = state._replace(own=())
        new, rows, metrics = run(bare, rows, data, cohort, key, rate)
        known = own.rows | dict(zip(ids, unstack(rows), strict=True))
        return new._replace(own=own._replace(rows=known)), metrics

    def lower(
        variables: Variables, data: FederatedData, cohort_size: int
    ) -> LoweredRound:
        state = planning.shapes(jax.eval_shape(fresh, variables), home)
        rows = ()
        if state.own:
            row = jax.eval_shape(lambda x: x, state.own.empty)
            rows = planning.rows(row, cohort_size, home)
        bare = state._replace(own=())
        cohort = jax.ShapeDtypeStruct((cohort_size,), jnp.int32)
        key = jax.eval_shape(jax.random.key, 0)
        rate = None
        if local.takes_rate:
            # As a Python number, which rounds are given.
            rate = jax.ShapeDtypeStruct((), jnp.result_type(float), weak_type=True)
        sent = bare.variables, bare.shared, bare.round, rows
        train = train_part if mesh is None else on_mesh
        part, own, known = jax.eval_shape(train, *sent, data, cohort, key, rate)
        if collectives:
            lowered = round_of_all.lower(bare, rows, data, cohort, key, rate)
            programs = {"a round": lowered}
        else:
            split = P(AXIS)
            part = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((home.size, *x.shape[1:]), x.dtype),
                part,
            )
            programs = {
                "training": train_apart.lower(
                    *planning.shapes(sent, mesh), data, cohort, key, rate
                ),
                "the server's step": update_apart.lower(
                    bare,
                    rows,
                    planning.shapes(part, home, split),
                    planning.shapes(own, home, split),
                    planning.shapes(known, home),
                    key,
                ),
            }
            part = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), part
            )
        table, sizes, _ = known
        result = jax.eval_shape(trainer.combine, part, own, table, sizes, key)
        return LoweredRound(
            state,
            programs,
            size_in_bytes(rule.sent_down(moving(state.variables), state.shared)),
            size_in_bytes(jax.eval_shape(rule.sent_up, result.message)),
        )

    def start(state: ServerState, client: int) -> Variables:
        own = first_own(state.variables, state.shared)
        if state.own and client in state.own.rows:
            known, row = state.own.rows[client]
            own = jax.tree.map(lambda x, y: jnp.where(known, x, y), row, own)
        return rule.begin(Context(state.variables, state.shared, own))

    return Algorithm(init, round, lower, start, takes_rate=local.takes_rate)


def _column(flags: Bool[Array, " cohort"], like: Array) -> Bool[Array, "cohort ..."]:
    return flags.reshape((-1,) + (1,) * (like.ndim - 1))


def _lifted(tree: PyTree) -> PyTree:
    """A device's arrays as its entry of arrays over all devices."""
    return jax.tree.map(lambda x: x[None], tree)


def _everywhere(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """On all devices: own state, too, goes to whichever trains its client next."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def _server_step(rule, server, state, result, share):
    """The state after a round, and the update that the server optimizer was given."""
    variables = state.variables
    # What is frozen stays the very same arrays.
    state = state._replace(variables=moving(variables))
    params, model_state = split(variables)
    sent = result.message.update
    filled = jax.tree.map(lambda x, d: accumulator(x) if d is None else d, params, sent)
    message = result.message._replace(update=filled)
    update, shared = rule.receive(message, state.shared, share)
    pseudo_gradient = jax.tree.map(jnp.negative, update)
    step, optimizer_state = server.update(
        pseudo_gradient, state.optimizer_state, params
    )
    # Weight decay would move what no client sends.
    params = jax.tree.map(
        lambda x, new, d: x if d is None else new,
        params,
        optax.apply_updates(params, step),
        sent,
    )
    model_state = jax.tree.map(
        lambda x, d: (x + d).astype(x.dtype), model_state, result.message.model_state
    )
    new = state._replace(
        variables={"params": params, **model_state},
        optimizer_state=optimizer_state,
        shared=shared,
    )
    counts = result.stats.weights.sum() > 0
    new = jax.tree.map(lambda x, old: jnp.where(counts, x, old), new, state)
    whole = {**frozen(variables), **new.variables}
    return new._replace(variables=whole, round=state.round + 1), update


def _measure(rule, new, update, result, sizes, state, diagnostics):
    stats, spread = result.stats, result.spread
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
    down = size_in_bytes(rule.sent_down(moving(state.variables), state.shared))
    up = size_in_bytes(rule.sent_up(result.message))
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


IDENTITY = optax.scale(-1.0)
"""The server optimizer of FedAvg: x + mean update."""


def proximal(mu: float) -> Callable[[PyTree, PyTree, Context], PyTree]:
    """The gradient of mu/2 |y - x|^2, added."""

    def correct(gradient, params, context):
        if mu == 0:
            return gradient
        return jax.tree.map(
            lambda g, y, x: g + mu * (y - x),
            gradient,
            params,
            context.variables["params"],
        )

    return correct


def is_linear(local: LocalTraining) -> bool:
    """Whether the clients' updates are linear in the gradients, tried on two steps of
    a number."""
    optimizer = local.at(1.0 if local.takes_rate else None).optimizer

    def second_update(gradients):
        x = jnp.zeros(())
        state = optimizer.init(x)
        for gradient in gradients:
            update, state = optimizer.update(jnp.asarray(gradient), state, x)
        return float(update)

    one, other = second_update((1.0, 0.5)), second_update((3.0, 1.5))
    return abs(other - 3 * one) <= 1e-5 * abs(other)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros of a tree's shapes, as wide as what is added up over clients."""
    return jax.tree.map(accumulator, tree)


def positive(x: Array) -> Array:
    """x, or 1 where it is 0: a divisor."""
    return jnp.where(x > 0, x, 1)
