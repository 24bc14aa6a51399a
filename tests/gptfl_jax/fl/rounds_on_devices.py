"""Rounds of several algorithms on a number of CPU devices, printed as JSON."""

import json
import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptfl_jax.data.partition import FederatedData
from gptfl_jax.fl import algorithms, clients, sampling
from gptfl_jax.training import Learner, cross_entropy, masked_mean

SIZES = (1, 7, 33, 12, 20, 50, 3, 9, 14)
COHORT_SIZE = 5  # Neither 2 nor 8 devices divide it.


class Compilations(logging.Handler):
    """Counts how often a round is compiled."""

    count = 0

    def emit(self, record):
        self.count += "Compiling jit(compiled_round)" in record.getMessage()


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


def main() -> None:
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    jax.config.update("jax_disable_most_optimizations", True)
    learner = make_learner()
    mesh = clients.clients_mesh()
    random = np.random.default_rng(0)
    count = sum(SIZES)
    data = FederatedData(
        random.normal(size=(count, 5)).astype(np.float32),
        random.integers(0, 3, count).astype(np.int32),
        np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32),
    )
    data = clients.place(data, mesh)
    local = clients.LocalTraining(optax.sgd(0.1), batch_size=8, epochs=2)
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
    results = {}
    logger = logging.getLogger("jax")
    logger.propagate = False
    for name, make in makers.items():
        algorithm = make()
        state = algorithm.init(variables, len(SIZES))
        logger.handlers = [compilations := Compilations()]
        with jax.log_compiles():
            for number in range(3):
                cohort = sampling.cohort(
                    jax.random.key(1), number, len(SIZES), COHORT_SIZE
                )
                key = jax.random.fold_in(jax.random.key(2), number)
                state, metrics = algorithm.round(state, data, cohort, key)
        own = []
        if state.own:
            own = [np.asarray(x) for x in jax.tree.leaves(state.own.pack().rows)]
        leaves = jax.tree.leaves(state.variables)
        results[name] = {
            "params": np.concatenate([np.ravel(x) for x in leaves]).tolist(),
            "own": np.concatenate([x.ravel() for x in own]).tolist() if own else [],
            "metrics": {key: float(v) for key, v in metrics._asdict().items()},
            "compilations": compilations.count,
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
