"""Rows sent cohort by cohort: the same bits as with all data on the device."""

import logging
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import algorithms, streaming
from gptfl_jax.fl.local_training import LocalTraining

from .conftest import CLASSES, FEATURES, SIZES
from .rounds_on_devices import Compilations

LOCAL = LocalTraining(optax.sgd(0.1), batch_size=2, epochs=2)
# Client 5 is twice in one of them; the last has all rows of the largest clients.
COHORTS = [np.array(c, np.int32) for c in ([6, 0, 3], [5, 1, 5], [2, 3, 4])]


def train(algorithm, variables, num_clients, rows):
    state, measured = algorithm.init(variables, num_clients), []
    for number, (cohort, data) in enumerate(rows):
        key = jax.random.fold_in(jax.random.key(1), number)
        state, metrics = algorithm.round(state, data, jnp.asarray(cohort), key)
        measured.append(jax.device_get(metrics))
    if state.own:
        state = state._replace(own=state.own.pack())
    return jax.device_get(state), measured


def host_data(sizes, random) -> FederatedData:
    count = sum(sizes)
    return FederatedData(
        random.normal(size=(count, FEATURES)),
        random.integers(0, CLASSES, count).astype(np.int32),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
    )


def workers() -> int:
    return sum(t.name.startswith("cohort-rows") for t in threading.enumerate())


# Bit for bit as users compile; the older code generator of quick tests rounds by size.
TOLERANCES = [1e-14, pytest.param(0, marks=pytest.mark.long)]


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("execution", ["packed", "vmap"])
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_results_are_those_of_data_on_the_device(problem, name, execution, tolerance):
    algorithm = getattr(algorithms, name)(problem.learner, LOCAL, execution=execution)
    # SCAFFOLD takes no client twice in a cohort.
    cohorts = COHORTS if name == "fedavg" else [COHORTS[0], COHORTS[2], COHORTS[0]]
    resident = [(cohort, problem.data) for cohort in cohorts]
    streamed = streaming.stream(jax.device_get(problem.data), cohorts)
    expected, got = (
        train(algorithm, problem.variables, len(SIZES), rows)
        for rows in (resident, streamed)
    )
    moved = expected[0].variables["params"]["w0"] - problem.variables["params"]["w0"]
    assert abs(moved).max() > 0.01
    chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance)
    assert workers() == 0


@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_a_length_of_rows_is_compiled_once(problem, tolerance):
    # A cohort of one: mean 2, deviation 10, hence 32 rows, or those of client 0.
    data = host_data([100] + 99 * [1], np.random.default_rng(0))
    cohorts = [np.array([c], np.int32) for c in (3, 5, 0, 99, 0, 7)]
    algorithm = algorithms.fedavg(problem.learner, LOCAL, execution="packed")
    logger, compilations = logging.getLogger("jax"), Compilations()
    logger.addHandler(compilations)
    lengths = []

    def rows():
        for cohort, sent in streaming.stream(data, cohorts):
            lengths.append(len(sent.labels))
            yield cohort, sent

    with jax.log_compiles():
        got = train(algorithm, problem.variables, 100, rows())
    logger.removeHandler(compilations)
    assert lengths == [32, 32, 100, 32, 100, 32]
    assert compilations.rounds == 2
    there = jax.device_put(data)
    expected = train(
        algorithm, problem.variables, 100, [(cohort, there) for cohort in cohorts]
    )
    chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("sizes", "cohort_size", "lengths"),
    [
        # Mean 1, variance 99: 1 + 3 sqrt(99) = 30.8, 4 + 6 sqrt(99) = 63.7.
        ([100] + 99 * [0], 1, [31, 100]),
        ([100] + 99 * [0], 4, [100]),
        # 1 + 3 sqrt(999) = 95.8, doubled while twice that is less than 1000.
        ([1000] + 999 * [0], 1, [96, 192, 384, 1000]),
        ([5, 6, 5, 6], 2, [12]),
        # With replacement a cohort may be larger than the population.
        ([5, 6, 5, 6], 9, [22]),
        ([0, 0], 1, [1]),
    ],
)
def test_capacities(sizes, cohort_size, lengths):
    got = streaming.capacities(np.array(sizes, np.int32), cohort_size)
    assert got.tolist() == lengths


def test_sends_the_rows_of_a_cohort_from_a_memory_map(tmp_path):
    random = np.random.default_rng(0)
    data = host_data(SIZES, random)
    pictures = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(sum(SIZES), 2, 2, 1))
    pictures[:] = random.integers(0, 256, pictures.shape)
    features = data.inputs.astype(np.float32)
    data = data._replace(inputs={"pictures": pictures, "features": features})
    cohorts = [np.array(c, np.int32) for c in ([5, 1, 5], [4, 6, 2])]
    starts = []
    for cohort, sent in streaming.stream(data, cohorts):
        starts.append(sent.starts.tolist())
        assert sent.inputs["pictures"].dtype == jnp.uint8
        for client, start in zip(cohort, starts[-1], strict=True):
            first, end = data.offsets[client : client + 2]
            for name, x in (*data.inputs.items(), ("labels", data.labels)):
                there = sent.labels if name == "labels" else sent.inputs[name]
                np.testing.assert_array_equal(
                    there[start : start + end - first], x[first:end]
                )
    # Sizes are 8 and 7; then 20, 3 and 30. Client 5 is sent once.
    assert starts == [[0, 8, 0], [0, 20, 23]]


def test_the_device_holds_two_cohorts_at_most(monkeypatch):
    data = host_data(SIZES, np.random.default_rng(0))
    sent, computed, put = [], [], []
    original = streaming.replicate

    def counted(tree, mesh):
        put.append(tree)
        return original(tree, mesh)

    monkeypatch.setattr(streaming, "replicate", counted)

    class Round:
        """Stands for what a round computes."""

        def __init__(self, number):
            self.number = number

        def block_until_ready(self):
            # The offsets were put first. This cohort and the next are there; the one
            # after these waits for this round.
            alive = [not data.labels.is_deleted() for data in sent[: self.number + 1]]
            computed.append((alive, len(put) - 1))

    rows = streaming.stream(data, 2 * COHORTS)
    metrics = None
    for number in range(6):
        sent.append(rows.send(metrics)[1])
        metrics = Round(number)
    with pytest.raises(StopIteration):
        rows.send(metrics)
    assert computed == [(n * [False] + [True], n + 2) for n in range(4)]
    assert [data.labels.is_deleted() for data in sent] == 4 * [True] + 2 * [False]
    assert not any(data.offsets.is_deleted() for data in sent)


def test_cohorts_are_drawn_two_ahead():
    drawn = []
    cohorts = (drawn.append(number) or COHORTS[number % 3] for number in range(5))
    data = host_data(SIZES, np.random.default_rng(0))
    seen = [list(drawn) for _ in streaming.stream(data, cohorts)]
    assert seen == [[0, 1, 2], [0, 1, 2, 3], *3 * [[0, 1, 2, 3, 4]]]


def test_an_error_of_the_thread_is_raised():
    class Torn(np.ndarray):
        """A file whose rows from 8 on cannot be read."""

        def __getitem__(self, rows):
            if rows.stop > 8:
                raise OSError("file is too short")
            return super().__getitem__(rows)

    data = host_data(SIZES, np.random.default_rng(0))
    data = data._replace(inputs=data.inputs.view(Torn))
    rows = streaming.stream(data, [np.array([c], np.int32) for c in (0, 1, 2, 1)])
    assert next(rows)[0] == [0]
    assert next(rows)[0] == [1]
    with pytest.raises(OSError, match="file is too short"):
        next(rows)
    assert workers() == 0


def test_closing_stops_the_thread():
    data = host_data(SIZES, np.random.default_rng(0))
    rows = streaming.stream(data, COHORTS)
    next(rows)
    assert workers() == 1
    rows.close()
    assert workers() == 0
