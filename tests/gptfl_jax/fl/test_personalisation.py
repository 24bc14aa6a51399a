"""Accuracy of clients before and after fine-tuning, against training in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.errors import UserError
from gptfl_jax.fl import algorithms, personalisation
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.fl.personalisation import ClientCounts

from .conftest import CLASSES, FEATURES, SIZES, combine, gradient

KEY = jax.random.key(7)
# The third client holds nothing out.
TEST_SIZES = (40, 9, 0, 25, 16, 33, 5)
CHOSEN = np.array([4, 3, 1, 5, 0])
RATE = 1.5
LOCAL = LocalTraining(optax.sgd(RATE), 8, epochs=2, schedule=lambda round: 0.0 * round)


@pytest.fixture
def held_out(problem) -> FederatedData:
    """Labels that the client's own examples foretell: fine-tuning changes the score."""
    random = np.random.default_rng(1)
    count = sum(TEST_SIZES)
    client = np.repeat(np.arange(len(SIZES)), TEST_SIZES)
    labels = random.integers(0, CLASSES, count)
    inputs = random.normal(size=(count, FEATURES)) + np.eye(FEATURES)[labels]
    inputs[:, -1] += client
    return FederatedData(
        jnp.asarray(inputs),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(np.concatenate([[0], np.cumsum(TEST_SIZES)]), jnp.int32),
    )


def right(w, held_out: FederatedData, client: int) -> int:
    rows = slice(*held_out.offsets[client : client + 2].tolist())
    x, labels = np.asarray(held_out.inputs)[rows], np.asarray(held_out.labels)[rows]
    logits = np.tanh(x @ w["w0"] + w["b0"]) @ w["w1"] + w["b1"]
    return int((logits.argmax(1) == labels).sum())


def fine_tuned(problem, w, client: int, epochs: int = 2):
    for batch in problem.batches(KEY, client, 8, epochs):
        w = combine(lambda y, g: y - RATE * g, w, gradient(w, batch))
    return w


def evaluation(problem, algorithm=None, **options):
    if algorithm is None:
        algorithm = algorithms.fedavg(problem.learner, LOCAL)
    return personalisation.make_evaluation(algorithm, problem.learner, LOCAL, **options)


# Chunks of 2 and of 3 of the 5 clients: the last one is not full.
@pytest.mark.parametrize(("execution", "lanes"), [("packed", 2), ("vmap", 3)])
def test_counts_are_those_of_fine_tuning_in_numpy(problem, held_out, execution, lanes):
    state = algorithms.fedavg(problem.learner, LOCAL).init(problem.variables, 7)
    measure = evaluation(problem, execution=execution, lanes=lanes)
    counts = measure(state, problem.data, held_out, CHOSEN, KEY)
    w = problem.weights()
    before = [right(w, held_out, c) for c in CHOSEN.tolist()]
    after = [right(fine_tuned(problem, w, c), held_out, c) for c in CHOSEN.tolist()]
    assert before != after
    assert counts.total.tolist() == [TEST_SIZES[c] for c in CHOSEN.tolist()]
    assert counts.before.tolist() == before
    # Not slowed down by the schedule over rounds, which is 0 here.
    assert counts.after.tolist() == after
    # A client whose fine-tuning fails gets nothing right.
    inputs = problem.data.inputs.at[problem.data.offsets[3]].set(jnp.nan)
    broken = problem.data._replace(inputs=inputs)
    counts = measure(state, broken, held_out, CHOSEN, KEY)
    assert counts.before.tolist() == before
    assert counts.after.tolist() == [after[0], 0, *after[2:]] and after[1] > 0


@pytest.mark.parametrize("execution", ["packed", "vmap"])
def test_clients_that_train_alone_are_tested_as_they_are(problem, held_out, execution):
    algorithm = algorithms.local_only(
        problem.learner, LOCAL._replace(schedule=None), execution="packed"
    )
    state = algorithm.init(problem.variables, 7)
    chosen = np.array([3, 5, 0])
    measure = evaluation(problem, algorithm, execution=execution, lanes=2)
    counts = measure(state, problem.data, held_out, chosen, KEY)
    untrained = [right(problem.weights(), held_out, c) for c in (3, 5, 0)]
    assert counts.before.tolist() == counts.after.tolist() == untrained
    state, _ = algorithm.round(state, problem.data, jnp.array([3, 5], jnp.int32), KEY)
    counts = measure(state, problem.data, held_out, chosen, KEY)
    own = {c: fine_tuned(problem, problem.weights(), c) for c in (3, 5)}
    own[0] = problem.weights()  # has not taken part
    expected = [right(own[c], held_out, c) for c in (3, 5, 0)]
    assert counts.before.tolist() == counts.after.tolist() == expected
    assert expected[:2] != untrained[:2]


@pytest.mark.parametrize("execution", ["packed", "vmap"])
def test_clients_with_weights_of_their_own_start_from_these(
    problem, held_out, execution
):
    """As of an algorithm that averages some weights and leaves others to clients."""
    alone = algorithms.local_only(
        problem.learner, LOCAL._replace(schedule=None), execution="packed"
    )
    state = alone.init(problem.variables, 7)
    state, _ = alone.round(state, problem.data, jnp.array([3, 5], jnp.int32), KEY)
    algorithm = alone._replace(aggregates=True)
    measure = evaluation(problem, algorithm, execution=execution, lanes=2)
    counts = measure(state, problem.data, held_out, np.array([3, 5, 0]), KEY)
    start = {c: fine_tuned(problem, problem.weights(), c) for c in (3, 5)}
    start[0] = problem.weights()  # has not taken part
    assert counts.before.tolist() == [right(start[c], held_out, c) for c in (3, 5, 0)]
    assert counts.after.tolist() == [
        right(fine_tuned(problem, start[c], c), held_out, c) for c in (3, 5, 0)
    ]
    assert counts.before.tolist() != [
        right(problem.weights(), held_out, c) for c in (3, 5, 0)
    ]


def test_frozen_statistics_stay_in_fine_tuning(problem, held_out):
    plain = problem.learner

    def loss(variables, batch, key):
        # With these statistics everything looks like class 0.
        statistics = variables["batch_stats"] + jnp.array([1e3, 0, 0])
        return plain.loss(variables, batch, key)[0], {"batch_stats": statistics}

    def predict(variables, inputs):
        return plain.predict(variables, inputs) + variables["batch_stats"]

    learner = plain._replace(loss=loss, predict=predict)
    algorithm = algorithms.fedavg(learner, LOCAL)
    state = algorithm.init({**problem.variables, "batch_stats": jnp.zeros(3)}, 7)
    after = {}
    for policy in ("average", "freeze"):
        measure = personalisation.make_evaluation(
            algorithm, learner, LOCAL, batch_norm=policy
        )
        counts = measure(state, problem.data, held_out, np.array([4]), KEY)
        after[policy] = counts.after.tolist()
    rows = slice(*held_out.offsets[4:6].tolist())
    zeros = int((held_out.labels[rows] == 0).sum())
    tuned = right(fine_tuned(problem, problem.weights(), 4), held_out, 4)
    assert after == {"average": [zeros], "freeze": [tuned]} and zeros != tuned


def test_server_weights_are_not_copied_for_clients_that_keep_other_state(problem):
    """SCAFFOLD's clients keep control variates, and start from the server's weights."""
    algorithm = algorithms.scaffold(problem.learner, LOCAL._replace(schedule=None))
    state = algorithm.init(problem.variables, 7)
    starts = [algorithm.start(state, client) for client in (0, 3, 5)]
    assert personalisation._the_same(starts)
    copied = jax.tree.map(jnp.copy, starts[0])
    assert not personalisation._the_same([starts[0], copied])


def test_summary_worked_by_hand():
    # Accuracies 0, 0.1, ..., 1.0 of 11 clients; after fine-tuning all right but two,
    # of which one gets half right and one nothing. One client has nothing to test.
    total = np.array([10] * 11 + [0])
    before = np.array([*range(11), 0])
    after = np.array([10] * 9 + [5, 0, 0])
    summary = personalisation.summarise(ClientCounts(total, before, after))
    assert summary == pytest.approx(
        # A tenth of 11 clients, rounded up, are 2.
        (0.5, 0.05, 1.0, 9.5 / 11, 0.25, 1.0)
    )
    one = personalisation.summarise(ClientCounts(*(np.array([n]) for n in (4, 1, 3))))
    assert one == (0.25, 0.25, 0.25, 0.75, 0.75, 0.75)
    none = personalisation.summarise(ClientCounts(*(np.zeros(2, int),) * 3))
    assert np.isnan(none).all()


def test_clients_are_chosen_among_those_with_held_out_examples():
    sizes, tests = np.array([5, 1, 9, 7, 7, 2]), np.array([1, 0, 2, 1, 1, 0])
    offsets, test_offsets = (
        np.concatenate([[0], np.cumsum(x)]) for x in (sizes, tests)
    )

    def choose(seed, size):
        key = jax.random.key(seed)
        return personalisation.choose(key, offsets, test_offsets, size).tolist()

    # The largest first; those of one size by number.
    assert choose(0, 0) == choose(0, 4) == choose(0, 9) == [2, 3, 4, 0]
    two = {tuple(choose(seed, 2)) for seed in range(40)}
    assert two == {(2, 3), (2, 4), (2, 0), (3, 4), (3, 0), (4, 0)}
    with pytest.raises(UserError, match=r"client_test_fraction.*which has 9.*every"):
        personalisation.choose(KEY, offsets, np.zeros(7, int), 2)
