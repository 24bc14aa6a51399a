"""Rounds of federated averaging through the engine that users run.

  python -m benchmarks.fl_round --workload w1 --data DIR --rounds 5

trains the same clients in the same rounds as the scripts of other simulators, and
prints one line of JSON with their fields. DIR holds `w1.npz` and `w2.npz`: examples
sorted by client (x, y, offsets), the clients of every round (schedule), num_classes,
batch, lr.

| workload | what |
| --- | --- |
| w1 | 28x28x1, 62 classes, 100 clients a round, CNN of arXiv 1602.05629, batch 20 |
| w2 | 32x32x3, 10 classes, 16 of 100 clients a round, ConvNet 3 x 128, batch 32 |

One local epoch of SGD. Round 0 compiles and is reported apart; rates are medians over
the rounds after it. `share_of_matmul_rate` relates the operations of a direct
convolution, forward and backward, to the rate that this machine reached right
afterwards on plain products of 1024 x 1024 matrices, one lane a device. Winograd's
convolution needs fewer operations, so the share may exceed 1.
"""

from benchmarks import measure  # First: it starts the clock.

# ruff: isort: split
import argparse
import itertools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from gptfl_jax import convolution, training
from gptfl_jax.data.partition import FederatedData
from gptfl_jax.fl import algorithms, clients, streaming
from gptfl_jax.models import cnn, convnet

MODELS = {"w1": cnn.Model, "w2": convnet.Model}

# Multiplications and additions for an example, forward and backward; the first layer
# needs no gradient of its input.
FLOPS = {
    "w1": 2
    * (2 * 28**2 * 25 * 32 + 3 * (14**2 * 25 * 32 * 64 + 3136 * 512 + 512 * 62)),
    "w2": 2 * (2 * 32**2 * 27 * 128 + 3 * ((16**2 + 8**2) * 9 * 128**2 + 2048 * 10)),
}


def main() -> None:
    """Runs the rounds and prints the line."""
    arguments = _parse()
    memory = measure.Memory()
    devices = arguments.cpu_devices or len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", devices)
    if arguments.form:
        with convolution.form(arguments.form):
            report = _run(arguments, memory)
    else:
        report = _run(arguments, memory)
    print(json.dumps(report), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=sorted(MODELS), default="w1")
    parser.add_argument("--data", required=True, help="folder of w1.npz and w2.npz")
    parser.add_argument("--rounds", type=int, default=5, help="timed, after round 0")
    parser.add_argument("--lr", type=float, help="instead of the workload's")
    parser.add_argument(
        "--client-execution", choices=("auto", "vmap", "packed"), default="auto"
    )
    parser.add_argument(
        "--data-placement",
        choices=("device", "stream"),
        default="device",
        help="all rows on the device, or each cohort's, sent a round ahead",
    )
    parser.add_argument("--cpu-devices", type=int, help="default: one a core")
    parser.add_argument(
        "--no-diagnostics", action="store_true", help="leave the round's metrics out"
    )
    parser.add_argument("--form", help="of every convolution; default: by backend")
    return parser.parse_args()


def _run(arguments: argparse.Namespace, memory: measure.Memory) -> dict:
    with np.load(os.path.join(arguments.data, f"{arguments.workload}.npz")) as file:
        x, y, offsets, schedule = (
            file[name] for name in ("x", "y", "offsets", "schedule")
        )
        num_classes, batch_size = int(file["num_classes"]), int(file["batch"])
        learning_rate = arguments.lr or float(file["lr"])
    sizes = np.diff(offsets)
    learner = training.make_learner(
        MODELS[arguments.workload](num_classes),
        jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    )
    mesh = clients.clients_mesh()
    data = FederatedData(x, y.astype(np.int32), offsets.astype(np.int32))
    cohorts = schedule[: arguments.rounds + 1].astype(np.int32)
    if arguments.data_placement == "stream":
        rows = streaming.stream(data, cohorts, mesh)
    else:
        rows = zip(cohorts, itertools.repeat(clients.place(data, mesh)), strict=False)
    algorithm = algorithms.fedavg(
        learner,
        clients.LocalTraining(optax.sgd(learning_rate), batch_size),
        execution=arguments.client_execution,
        mesh=mesh,
        diagnostics=not arguments.no_diagnostics,
    )
    variables = learner.init(jax.random.key(0))
    state = algorithm.init(variables, len(sizes))
    rounds = measure.Rounds()
    for r in range(len(cohorts)):
        rounds.begin()
        cohort, data = next(rows)
        key = jax.random.fold_in(jax.random.key(1), r)
        state, metrics = algorithm.round(state, data, cohort, key)
        jax.block_until_ready((state, metrics))
        rounds.end()
    peak_mb, processes = memory.peak_mb, memory.processes
    tested = np.random.default_rng(0).choice(len(y), 1000, replace=False)

    def loss(variables):
        return training.evaluate(
            learner, variables, x[tested], y[tested], num_classes, batch_size=500
        ).loss

    wall, cpu = np.array(rounds.wall_s[1:]), np.array(rounds.cpu_s[1:])
    examples = sizes[schedule[1 : len(rounds.wall_s)]].sum(1)
    rate = float(np.median(examples / wall))
    matmul = matmul_rate(mesh)
    return dict(
        peer="gptfl-jax",
        workload=arguments.workload,
        rounds=len(wall),
        median_s_per_round=round(float(np.median(wall)), 3),
        best_s_per_round=round(float(wall.min()), 3),
        clients_per_s=round(float(np.median(schedule.shape[1] / wall)), 2),
        examples_per_s=round(rate, 1),
        best_examples_per_s=round(float((examples / wall).max()), 1),
        cpu_ms_per_example=round(1000 * float(np.median(cpu / examples)), 3),
        first_round_s=round(rounds.wall_s[0], 2),
        startup_to_first_round_s=round(rounds.startup_s, 2),
        peak_pss_mb=round(peak_mb),
        procs=processes,
        loss_before=round(float(loss(variables)), 4),
        loss_after=round(float(loss(state.variables)), 4),
        rounds_s=[round(seconds, 3) for seconds in rounds.wall_s[1:]],
        matmul_gflops=round(matmul / 1e9, 1),
        share_of_matmul_rate=round(rate * FLOPS[arguments.workload] / matmul, 3),
        client_execution=arguments.client_execution,
        data_placement=arguments.data_placement,
        devices=jax.device_count(),
        jax=jax.__version__,
    )


def matmul_rate(mesh: jax.sharding.Mesh | None) -> float:
    """Operations a second of 1024 x 1024 float32 products on all devices at once."""
    size, repeats = 1024, 20
    count = 1 if mesh is None else mesh.size

    def lane(x):
        return lax.fori_loop(0, repeats, lambda _, y: y @ y * (1 / size), x)

    if mesh is not None:
        split = P(mesh.axis_names)
        lane = jax.shard_map(lane, mesh=mesh, in_specs=split, out_specs=split)
    lanes = jax.jit(lane)
    x = jnp.ones((count * size, size), jnp.float32)
    best = np.inf
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(lanes(x))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 * repeats * count / best


if __name__ == "__main__":
    main()
