"""Rounds of several algorithms on a number of CPU devices, printed as JSON."""

import contextlib
import json
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import (
    algorithms,
    composition,
    personalisation,
    sampling,
    server_training,
    streaming,
)
from gptfl_jax.fl.execution import clients_mesh, place
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import Learner, cross_entropy, masked_mean

SIZES = (1, 7, 33, 12, 20, 50, 3, 9, 14)
COHORT_SIZE = 5  # Neither 2 nor 8 devices divide it.


class Compilations(logging.Handler):
    """Counts how often a round and a test of clients are compiled."""

    def __init__(self):
        super().__init__()
        self.rounds = self.halves = self.tests = 0

    def emit(self, record):
        message = record.getMessage()
        self.rounds += "Compiling jit(round_of_all)" in message
        # On CPU devices of one process a round is two programs.
        self.halves += "Compiling jit(train_apart)" in message
        self.rounds += "Compiling jit(update_apart)" in message
        self.tests += "Compiling jit(evaluate)" in message


def make_learner() -> Learner:
    def init(key):
        w = 0.1 * jax.random.normal(key, (5, 3))
        # A running mean of the inputs stands for batch statistics.
        return {"params": {"w": w, "b": jnp.zeros(3)}, "batch_stats": jnp.zeros(5)}

    def predict(variables, inputs):
        return inputs @ variables["params"]["w"] + variables["params"]["b"]

    def loss(variables, batch, key):
        noise = 0.1 * jax.random.normal(key, batch.inputs.shape)
        losses = cross_entropy(predict(variables, batch.inputs + noise), batch.labels)
        mean = batch.mask @ batch.inputs / jnp.maximum(batch.mask.sum(), 1)
        statistics = 0.9 * variables["batch_stats"] + 0.1 * mean
        return masked_mean(losses, batch.mask), {"batch_stats": statistics}

    return Learner(init, loss, predict)


def own_start(state, client):
    return jax.tree.map(lambda x: x * (1 + 0.1 * client), state.variables)


def main() -> None:
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    jax.config.update("jax_disable_most_optimizations", True)
    learner = make_learner()
    mesh = clients_mesh()
    random = np.random.default_rng(0)
    count = sum(SIZES)
    data = FederatedData(
        random.normal(size=(count, 5)).astype(np.float32),
        random.integers(0, 3, count).astype(np.int32),
        np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32),
    )
    placed = place(data, mesh)
    cohorts = [
        sampling.cohort(jax.random.key(1), number, len(SIZES), COHORT_SIZE)
        for number in range(3)
    ]
    local = LocalTraining(optax.sgd(0.1), batch_size=8, epochs=2)
    variables = learner.init(jax.random.key(0))
    makers = {
        "packed": lambda: algorithms.fedavg(
            learner, local, mesh=mesh, execution="packed"
        ),
        "vmap": lambda: algorithms.fedopt(
            learner, local, optax.adam(0.01), mesh=mesh, execution="vmap", lanes=2
        ),
        "scaffold": lambda: algorithms.scaffold(learner, local, mesh=mesh),
    }
    resident = [(cohort, placed) for cohort in cohorts]
    steps = server_training.server_training(
        server_training.make_server_step(learner),
        *(data.inputs, data.labels),
        **{"steps": 2, "batch_size": 16, "learning_rate": 0.1, "seed": 0},
        key=jax.random.key(4),
        mesh=mesh,
    )
    results = {}
    for name, make in makers.items():
        algorithm = make()
        after_round = steps if name == "packed" else lambda state, number: state
        state, results[name] = train(algorithm, variables, resident, after_round)
        if name != "packed":
            execution = "vmap"
            if name == "scaffold":
                # As if clients kept weights of their own.
                execution, algorithm = "packed", algorithm._replace(start=own_start)
            # On the training examples themselves, of 7 clients 2 at a time.
            measure = personalisation.make_evaluation(
                algorithm, learner, local, execution=execution, mesh=mesh, lanes=2
            )
            results[name] |= test(measure, state, placed)
    streamed = streaming.stream(data, cohorts, mesh)
    _, results["streamed scaffold"] = train(makers["scaffold"](), variables, streamed)
    print(json.dumps(results))


@contextlib.contextmanager
def count_compilations():
    logger = logging.getLogger("jax")
    logger.propagate = False
    logger.handlers = [compilations := Compilations()]
    with jax.log_compiles():
        yield compilations


def train(
    algorithm, variables, rows, after_round=lambda state, number: state
) -> tuple[composition.ServerState, dict]:
    state = algorithm.init(variables, len(SIZES))
    with count_compilations() as compilations:
        for number, (cohort, data) in enumerate(rows):
            key = jax.random.fold_in(jax.random.key(2), number)
            state, metrics = algorithm.round(state, data, cohort, key)
            state = after_round(state, number + 1)
    own = []
    if state.own:
        own = [np.asarray(x) for x in jax.tree.leaves(state.own.pack().rows)]
    leaves = jax.tree.leaves(state.variables)
    return state, {
        "params": np.concatenate([np.ravel(x) for x in leaves]).tolist(),
        "own": np.concatenate([x.ravel() for x in own]).tolist() if own else [],
        "metrics": {key: float(v) for key, v in metrics._asdict().items()},
        "compilations": [compilations.rounds, compilations.halves],
    }


def test(measure, state, data) -> dict:
    chosen = np.array([5, 2, 4, 8, 7, 3, 1])
    with count_compilations() as compilations:
        for number in range(2):
            key = jax.random.fold_in(jax.random.key(3), number)
            counts = measure(state, data, data, chosen, key)
    return {
        "compilations_of_tests": compilations.tests,
        "counts": [np.asarray(x).tolist() for x in counts],
    }


if __name__ == "__main__":
    main()
