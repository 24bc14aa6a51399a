"""How well clients are served: accuracy on their own held-out examples.

Before and after local fine-tuning, which is the plainest personalisation: Salvaging
Federated Learning by Local Adaptation (arXiv 2002.04758). A mean over all examples
hides the clients that a global model fails; here every client counts the same, and the
worst of them are a number of their own.

A client starts from what `Algorithm.start` gives (the server's weights, or its own
where it keeps some), and is fine-tuned as in a round: same optimizer, batches and
epochs, but on the learner's plain loss and at the same learning rate in every round, so
that measurements of different rounds compare. Where the server aggregates nothing
(local_only), a client's own model is its personal one and is tested as it is: before
and after are the same.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, PyTree

from gptfl_jax import devices
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.errors import UserError
from gptfl_jax.evaluation import Counts
from gptfl_jax.fl import cohorts, sampling
from gptfl_jax.fl.client_rules import Context, plain_rule
from gptfl_jax.fl.client_states import stack
from gptfl_jax.fl.composition import Algorithm, ServerState
from gptfl_jax.fl.execution import AXIS, make_local_trainer, replicated, resolved
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.normalisation import apply_policy
from gptfl_jax.trainable import frozen, moving
from gptfl_jax.training import Learner, Variables


class ClientCounts(NamedTuple):
    """Held-out examples of each client measured, and how many it got right."""

    total: Int[Array | np.ndarray, " clients"]
    before: Int[Array | np.ndarray, " clients"]
    """Right before local fine-tuning."""
    after: Int[Array | np.ndarray, " clients"]
    """Right after it; of an algorithm that aggregates nothing, the same as before."""

    def accuracies(
        self,
    ) -> tuple[Float[np.ndarray, " tested"], Float[np.ndarray, " tested"]]:
        """(before, after) of the clients that have held-out examples."""
        total, before, after = map(np.asarray, self)
        tested = total > 0
        return before[tested] / total[tested], after[tested] / total[tested]


class AccuracySummary(NamedTuple):
    """Of the accuracies of clients, each counting the same; NaN without clients."""

    client_accuracy_mean: float
    client_accuracy_worst_decile: float
    """Mean over the tenth of the clients with the lowest accuracy, rounded up: of 25
    clients the worst 3. They are chosen anew after fine-tuning."""
    client_accuracy_best: float
    personalised_accuracy_mean: float
    """From here on, after local fine-tuning."""
    personalised_accuracy_worst_decile: float
    personalised_accuracy_best: float


def count_models(
    algorithm: Algorithm,
    state: ServerState,
    count: Callable[[Variables], Counts],
    most: int = 0,
    seed: int = 0,
) -> Counts:
    """Counts of the server's weights; where clients keep their own, of these together.

    Args:
        count: counts a test set by some weights.
        most: of the clients that have trained, so many are drawn; 0: all.
        seed: of the draw.
    """
    clients = [] if algorithm.aggregates else state.own.taken_part()
    if not clients:
        return count(state.variables)
    if 0 < most < len(clients):
        generator = np.random.default_rng((seed, len(clients)))
        clients = sorted(generator.choice(clients, most, replace=False).tolist())
    each = (count(algorithm.start(state, client)) for client in clients)
    return functools.reduce(functools.partial(jax.tree.map, jnp.add), each)


def summarise(counts: ClientCounts) -> AccuracySummary:
    """Turns counts into numbers on the host; waits for the device."""

    def numbers(accuracies: np.ndarray) -> tuple[float, float, float]:
        if not len(accuracies):
            return math.nan, math.nan, math.nan
        worst = np.sort(accuracies)[: math.ceil(len(accuracies) / 10)]
        return float(accuracies.mean()), float(worst.mean()), float(accuracies.max())

    before, after = counts.accuracies()
    return AccuracySummary(*numbers(before), *numbers(after))


def choose(
    key: PRNGKeyArray,
    train_offsets: Int[np.ndarray, " clients_plus_1"],
    test_offsets: Int[np.ndarray, " clients_plus_1"],
    size: int,
) -> Int32[np.ndarray, " chosen"]:
    """`size` different clients among those with held-out examples; all if 0 or fewer.

    Returns:
        Clients in falling order of their training examples, as `make_evaluation` wants.

    Raises:
        UserError: no client has a held-out example.
    """
    available = np.flatnonzero(np.diff(test_offsets)).astype(np.int32)
    sizes = np.diff(train_offsets)
    if not len(available):
        raise UserError(
            "config.federated.client_test_fraction holds out no example of any client, "
            f"the largest of which has {sizes.max()}: raise it, or set "
            "config.federated.personalisation_every = 0"
        )
    if 0 < size < len(available):
        drawn = sampling.cohort_of_available(key, 0, jnp.asarray(available), size)
        available = np.sort(np.asarray(drawn))
    return available[np.argsort(-sizes[available], kind="stable")]


class _Rows(NamedTuple):
    """Where held-out examples lie, [clients]."""

    start: Int32[Array, " clients"]
    size: Int32[Array, " clients"]


def make_evaluation(
    algorithm: Algorithm,
    learner: Learner,
    local: LocalTraining,
    *,
    batch_norm: str = "average",
    execution: str = "auto",
    mesh: Mesh | None = None,
    lanes: int = 16,
) -> Callable[..., ClientCounts]:
    """Builds (state, train, test, chosen, key, rate) -> `ClientCounts` of the chosen
    clients.

    `rate` is the learning rate of an optimizer that takes one. `train` and `test` are
    the two parts of each client's examples, `chosen` different clients (numpy; best by
    falling size, so that those who train together take equally long). Returns without
    waiting for the device. Takes one pass over the chosen clients, `lanes` a device at
    a time, whatever the population. Where clients keep weights of their own, as many of
    them lie side by side.

    Args:
        algorithm: gives the weights a client starts from.
        local: how clients fine-tune; its `schedule` over rounds is left out.
        batch_norm: the algorithm's policy; under "freeze" fine-tuning keeps statistics.
        execution: see `gptfl_jax.fl.execution`; "vmap" has `lanes` clients side by
            side.
        mesh: over whose axis `clients` they are split; None: one device.

    Raises:
        ValueError: an unknown execution, or fewer than 1 lane.
    """
    if lanes < 1:
        raise ValueError(f"lanes {lanes}: takes 1 or more")
    rule = plain_rule(learner)
    if batch_norm == "freeze":
        rule = apply_policy(rule, batch_norm)
    shared_start = make_local_trainer(rule, local, execution=execution)
    own_start = make_local_trainer(
        rule._replace(begin=lambda context: {**context.variables, **context.own}),
        local,
        execution=execution,
    )
    number_of_devices = 1 if mesh is None else mesh.shape[AXIS]
    together = not devices.apart(mesh)

    def count(variables, test: FederatedData, rows: _Rows) -> Int[Array, ""]:
        """Held-out examples of a client that the variables get right."""
        size = local.batch_size

        def add(b, right):
            place = b * size + jnp.arange(size)
            inputs, labels = jax.tree.map(
                lambda x: jnp.take(x, rows.start + place, axis=0, mode="clip"),
                (test.inputs, test.labels),
            )
            logits = learner.predict(variables, inputs)
            # Of logits with a NaN argmax makes a class, by chance the right one.
            hit = (logits.argmax(-1) == labels) & ~jnp.isnan(logits).any(-1)
            return right + jnp.sum(hit & (place < rows.size), dtype=jnp.int32)

        batches = lax.div(rows.size + (size - 1), jnp.int32(size))
        return lax.fori_loop(0, batches, add, jnp.zeros((), jnp.int32))

    def untrained(server, own, test, rows):
        """Of the clients as they are, twice."""

        def alone(of_client):
            its_own, its_rows = of_client
            return count({**server, **(its_own or {})}, test, its_rows)

        packed = resolved(execution) == "packed"
        right = (lax.map if packed else _vmap)(alone, (own, rows))
        return right, right

    def on_device(server, own, train, test, entries, rows, rate):
        if not algorithm.aggregates:
            return untrained(server, own, test, rows)
        trainer = own_start if jax.tree.leaves(own) else shared_start
        return trainer(
            Context(server, (), own),
            train,
            entries,
            lambda start, trained, rows: (
                count(start, test, rows),
                count(trained, test, rows),
            ),
            rows,
            rate,
        )

    @jax.jit
    def describe(train, test, chosen, key) -> tuple[cohorts.Cohort, _Rows]:
        """Of each client chosen, and behind them of nobody."""
        sizes = test.offsets[chosen + 1] - test.offsets[chosen]
        rows = _Rows(test.begins(chosen), sizes)
        rows = jax.tree.map(lambda x: jnp.append(x, jnp.zeros(1, x.dtype)), rows)
        described = cohorts.describe(train, chosen, key, local), rows
        if mesh is None:
            return described
        return lax.with_sharding_constraint(described, replicated(mesh))

    def count_clients(number, positions, server, own, train, test, cohort, rows, rate):
        """Counts of all `number` clients chosen, but zero of those not at `positions`.

        On a mesh `positions` and `own` are those of one device.
        """
        entries, its_rows = jax.tree.map(lambda x: x[positions], (cohort, rows))
        before, after = on_device(server, own, train, test, entries, its_rows, rate)
        new = ClientCounts(its_rows.size, before, after)
        return jax.tree.map(
            lambda x: jnp.zeros(number, jnp.int32).at[positions].set(x, mode="drop"),
            new,
        )

    @functools.partial(jax.jit, static_argnames="number")
    def evaluate(number, positions, server, own, train, test, cohort, rows, rate):
        """`count_clients` on all devices: the sum, or apart [devices, number]."""
        run = functools.partial(count_clients, number)
        arguments = positions, server, own, train, test, cohort, rows, rate
        if mesh is None:
            return run(*arguments)

        def part(*arguments):
            counts = run(*arguments)
            if together:
                return lax.psum(counts, AXIS)
            return jax.tree.map(lambda x: x[None], counts)

        split, whole = P(AXIS), P()
        return jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(split, whole, split, whole, whole, whole, whole, whole),
            out_specs=whole if together else split,
            check_vma=False,
        )(*arguments)

    def measure(
        state: ServerState,
        train: FederatedData,
        test: FederatedData,
        chosen: Int[np.ndarray, " chosen"],
        key: PRNGKeyArray,
        rate: Float[Array, ""] | float | None = None,
    ) -> ClientCounts:
        number = len(chosen)
        cohort, rows = describe(train, test, chosen.astype(np.int32), key)
        width = min(lanes, math.ceil(number / number_of_devices))
        total = None
        for first in range(0, number, number_of_devices * width):
            positions = first + np.arange(number_of_devices * width, dtype=np.int32)
            positions = np.minimum(positions, number)
            # Dealt in turn: every device gets large ones and small ones.
            positions = positions.reshape(width, number_of_devices).T.ravel()
            starts = [
                algorithm.start(state, int(chosen[min(position, number - 1)]))
                for position in positions
            ]
            server, own = starts[0], ()
            if not _the_same(starts):
                server, own = frozen(server), stack([moving(each) for each in starts])
            if not together:
                server, own = devices.replicate((server, own), mesh)
            counts = evaluate(
                number, positions, server, own, train, test, cohort, rows, rate
            )
            total = counts if total is None else _add(total, counts)
        return total if together else devices.add_up(total, mesh)

    return measure


def _vmap(function: Callable[[PyTree], PyTree], of_clients: PyTree) -> PyTree:
    """`lax.map`, all at once."""
    return jax.vmap(function)(of_clients)


def _the_same(trees: list[PyTree]) -> bool:
    """Whether all are made of the very same arrays, as the server's weights are."""
    first, *others = map(jax.tree.leaves, trees)
    return all(x is y for other in others for x, y in zip(first, other, strict=True))


@jax.jit
def _add(x: ClientCounts, y: ClientCounts) -> ClientCounts:
    return jax.tree.map(jnp.add, x, y)
