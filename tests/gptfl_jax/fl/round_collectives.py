"""Prints what is sent between devices in a round, as XLA has compiled it.

As on accelerators, where a round is one program. The second line has what a round
exported for them sends.
"""

import re
import sys

import jax
import numpy as np
import optax
from rounds_on_devices import COHORT_SIZE, SIZES, make_learner

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import algorithms
from gptfl_jax.fl.execution import clients_mesh, place
from gptfl_jax.fl.local_training import LocalTraining


def main() -> None:
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    learner, mesh = make_learner(), clients_mesh()
    data = FederatedData(
        np.zeros((sum(SIZES), 5), np.float32),
        np.zeros(sum(SIZES), np.int32),
        np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32),
    )
    local = LocalTraining(optax.sgd(0.1), batch_size=8)
    algorithm = algorithms.fedavg(learner, local, mesh=mesh, collectives=True)
    state = algorithm.init(learner.init(jax.random.key(0)), len(SIZES))
    cohort = np.arange(COHORT_SIZE, dtype=np.int32)
    arguments = state, place(data, mesh), cohort, jax.random.key(1)
    lowered = jax.jit(algorithm.round).lower(*arguments)
    collective = r" (all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\("
    print(*re.findall(collective, lowered.compile().as_text()))
    algorithm = algorithms.fedavg(
        learner, local, mesh=mesh, collectives=True, execution="vmap"
    )
    round = jax.jit(algorithm.round)
    exported = jax.export.export(round, platforms=("cuda", "tpu"))(*arguments)
    collective = r"stablehlo\.(all_[a-z]+|reduce_scatter|collective_[a-z]+)"
    print(*sorted(set(re.findall(collective, exported.mlir_module()))))


if __name__ == "__main__":
    main()
