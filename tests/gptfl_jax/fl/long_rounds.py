"""Runs of a user's size on two CPU devices a process, printed as JSON.

long_rounds.py uneven SECONDS              one device takes so much longer
long_rounds.py many ROUNDS [ADDRESS COUNT ID]   rounds, each with a large test
"""

import json
import sys
import time

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gptfl_jax import evaluation, training
from gptfl_jax.data import federated_data
from gptfl_jax.fl import algorithms, sampling
from gptfl_jax.fl.execution import AXIS, clients_mesh, place
from gptfl_jax.fl.local_training import LocalTraining

RANDOM = np.random.default_rng(0)


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = RANDOM.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
    return pixels, RANDOM.integers(0, 10, count).astype(np.int32)


def federation(mesh, sizes) -> federated_data.FederatedData:
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return place(
        federated_data.FederatedData(*pictures(int(offsets[-1])), offsets), mesh
    )


class Linear(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        return nn.Dense(10)(inputs.reshape(len(inputs), -1))


def make_learner(model: nn.Module) -> training.Learner:
    return training.make_learner(
        model,
        jax.ShapeDtypeStruct((28, 28, 1), np.uint8),
        normalisation=training.Normalisation((0.5,), (0.5,)),
    )


def uneven(seconds: float) -> dict:
    """A round of two clients, of 630 and 10 examples, one on each device.

    A client waits for each of its examples: that takes long and leaves the cores to
    others.
    """
    mesh, learner, row_s = clients_mesh(), make_learner(Linear()), 0.0

    def wait(rows: np.ndarray) -> np.ndarray:
        time.sleep(row_s * float(rows))
        return np.zeros((), np.float32)

    def loss(variables, batch, key):
        nothing = jax.ShapeDtypeStruct((), np.float32)
        late = jax.pure_callback(wait, nothing, batch.mask.sum())
        value, model_state = learner.loss(variables, batch, key)
        return value + late, model_state

    sizes = [630, 10]
    data = federation(mesh, sizes)
    local = LocalTraining(optax.sgd(0.01), batch_size=32)
    algorithm = algorithms.fedavg(learner._replace(loss=loss), local, mesh=mesh)
    state = algorithm.init(learner.init(jax.random.key(0)), 2)

    def a_round() -> tuple[float, int]:
        cohort = np.arange(2, dtype=np.int32)
        started = time.perf_counter()
        _, metrics = algorithm.round(state, data, cohort, jax.random.key(1))
        reported = int(metrics.clients)
        return time.perf_counter() - started, reported

    a_round()  # Compiles.
    row_s = seconds / (sizes[0] - sizes[1])
    took, reported = a_round()
    return {"seconds": took, "clients": reported}


def many(rounds: int) -> dict:
    """Rounds with a test on 10,000 examples each, read a round later, as stage 3."""
    mesh, learner = clients_mesh(), make_learner(Linear())
    split = NamedSharding(mesh, P(AXIS))
    data = federation(mesh, RANDOM.integers(5, 40, 30))
    test = evaluation.split_examples(*pictures(10_000), split)
    local = LocalTraining(optax.sgd(0.01), batch_size=10)
    algorithm = algorithms.fedavg(learner, local, mesh=mesh)
    state = algorithm.init(learner.init(jax.random.key(0)), 30)
    counted, before = [], None
    for number in range(rounds):
        cohort = sampling.cohort(jax.random.key(1), number, 30, 5)
        key = jax.random.fold_in(jax.random.key(2), number)
        state, _ = algorithm.round(state, data, cohort, key)
        counts = evaluation.evaluate_async(
            learner, state.variables, *test, 10, 512, split
        )
        for late in (before,) if number + 1 < rounds else (before, counts):
            if late is not None:
                counted.append(int(np.sum(late.confusion)))
        before = counts
    weights = jax.device_get(state.variables)
    total = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(weights))
    return {"counted": counted, "weights": total}


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    task, amount, *others = sys.argv[1:]
    if others:
        address, count, number = others
        jax.distributed.initialize(address, int(count), int(number))
    result = uneven(float(amount)) if task == "uneven" else many(int(amount))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
