"""The rounds of a federation, one after another, with the device a round ahead."""

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PRNGKeyArray

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import streaming
from gptfl_jax.fl.composition import Algorithm, ServerState
from gptfl_jax.fl.diagnostics import RoundMetrics

# The streams of draws from a seed; a result depends on these numbers.
_STAGE = 3
INITIAL_WEIGHTS, COHORTS, CLIENTS, TESTED_CLIENTS, FINE_TUNING, SERVER = range(6)


def key_of(seed: int, stream: int) -> PRNGKeyArray:
    """The key of one of the streams above, of a federation with this seed."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STAGE), stream)


class Round(NamedTuple):
    """What a round has left, on the device until it is read."""

    number: int
    """From 1; 0 stands for the state before the first."""
    metrics: RoundMetrics | None
    """None in round 0."""
    observed: Any
    """What `observe` returned."""


def rounds(
    algorithm: Algorithm,
    state: ServerState,
    data: FederatedData,
    sample: Callable[[int], Int32[Array, " cohort"]],
    key: PRNGKeyArray,
    num_rounds: int,
    *,
    after_round: Callable[[ServerState, int], ServerState] = lambda state, number: (
        state
    ),
    observe: Callable[[int, ServerState, bool], Any] = lambda number, state, last: None,
    done: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    streamed: bool = False,
    mesh: Mesh | None = None,
) -> Iterator[Round]:
    """Runs rounds, and yields each when the next one has been started.

    While the device computes a round, the host reads, writes and saves what the one
    before has left; reading a `Round` waits for it.

    Args:
        state: after `done` rounds.
        data: of all clients: on the devices (`execution.place`), or on the host if
            `streamed`.
        sample: rounds done -> the next cohort. It is asked one round ahead.
        key: of local training; round r uses fold_in(key, r - 1).
        num_rounds: in all, those done included.
        after_round: (state, round) -> what the server makes of it before anyone sees
            it, as `server_training.server_training` gives it.
        observe: (round, state after it, whether it is the last) -> what the caller
            wants of a state, as counts of a test or the state itself to save it. It
            must not wait for the device.
        done: rounds that `state` has behind it; None: a new run, whose state before the
            first round is observed and yielded as round 0.
        stop: asked after each round that was started; when it says so, that round is
            the last.
        streamed: sends each cohort's rows to the device, a round ahead.
        mesh: that the rows are sent to.
    """
    start = done or 0
    cohorts = (sample(number) for number in range(start, num_rounds))
    if streamed:
        rows = streaming.stream(data, cohorts, mesh)
    else:
        rows = ((cohort, data) for cohort in _one_ahead(cohorts))
    metrics = None
    pending = collections.deque()
    if done is None:
        pending.append(Round(0, None, observe(0, state, num_rounds == 0)))
    with contextlib.closing(rows):
        for number in range(start + 1, num_rounds + 1):
            cohort, given = rows.send(metrics)
            of_round = jax.random.fold_in(key, number - 1)
            state, metrics = algorithm.round(state, given, cohort, of_round)
            state = after_round(state, number)
            last = number == num_rounds or stop()
            pending.append(Round(number, metrics, observe(number, state, last)))
            while len(pending) > (0 if last else 1):
                yield pending.popleft()
            if last:
                return
    yield from pending


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each when the one after it has been asked for as well.

    So the device draws a cohort before it begins the round before, and a host that
    must know who is in it does not wait for that round.
    """
    ahead = itertools.pairwise(itertools.chain(items, (None,)))
    return (item for item, _ in ahead)
