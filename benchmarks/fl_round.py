"""Rounds of federated averaging through the engine that users run.

  python -m benchmarks.fl_round --workload w1 --data DIR --rounds 5

trains the same clients in the same rounds as the scripts of other simulators, and
prints one line of JSON with their fields. DIR holds a file a workload, as `w1.npz`:
examples sorted by client (x, y, offsets), the clients of every round (schedule),
num_classes, batch, lr. The peers' own generator makes w1 and w2,
`benchmarks.peers.make_data` the others.

| workload | what |
| --- | --- |
| w1 | 28x28x1, 62 classes, 100 clients a round, CNN of arXiv 1602.05629, batch 20 |
| w2 | 32x32x3, 10 classes, 16 of 100 clients a round, ConvNet 3 x 128, batch 32 |
| w3 | w2 with ResNet-20 and its batch norm |
| w4 | 160 frames x 128 bands, 35 classes, 10 of 50 clients, conv-GRU, batch 16 |
| w5 | w2 at 64x64 with ResNet-20 of width 64 (ResNet-18's channels), group norm |

One local epoch of SGD. Round 0 compiles and is reported apart; rates are medians over
the rounds after it. `share_of_matmul_rate` relates the operations of a direct
convolution, forward and backward, to the rate that this machine reached right
afterwards on plain products of 1024 x 1024 matrices, one lane a device. Winograd's
convolution needs fewer operations, so the share may exceed 1.
"""

from benchmarks import measure  # First: it starts the clock.
from gptfl_jax import evaluation

# ruff: isort: split
import argparse
import functools
import itertools
import json
import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from gptfl_jax import convolution, launch, training
from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import algorithms, streaming
from gptfl_jax.fl.execution import clients_mesh, place
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.models import audio_conv_rnn, cnn, convnet, resnet

MODELS = {
    "w1": cnn.Model,
    "w2": convnet.Model,
    "w3": resnet.Model,
    "w4": audio_conv_rnn.Model,
    "w5": functools.partial(resnet.Model, width=64, norm="group"),
}


def main() -> None:
    """Runs the rounds and prints the line."""
    arguments = _parse()
    memory = measure.Memory()
    if arguments.cpu_devices:
        jax.config.update("jax_num_cpu_devices", arguments.cpu_devices)
    # From nothing: what an earlier run has compiled would shorten the first round.
    jax.config.update("jax_enable_compilation_cache", arguments.compilation_cache)
    launch.setup()
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
    parser.add_argument("--data", required=True, help="folder of w1.npz, ...")
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
    parser.add_argument(
        "--lanes", type=int, default=0, help="clients side by side under vmap; 0: 8"
    )
    parser.add_argument("--cpu-devices", type=int, help="default: one a core")
    parser.add_argument(
        "--no-diagnostics", action="store_true", help="leave the round's metrics out"
    )
    parser.add_argument(
        "--compilation-cache", action="store_true", help="that of the programs"
    )
    parser.add_argument(
        "--in-turn", action="store_true", help="after round 0, wait for a line of stdin"
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
    mesh = clients_mesh()
    data = FederatedData(x, y.astype(np.int32), offsets.astype(np.int32))
    cohorts = schedule[: arguments.rounds + 1].astype(np.int32)
    if arguments.data_placement == "stream":
        rows = streaming.stream(data, cohorts, mesh)
    else:
        rows = zip(cohorts, itertools.repeat(place(data, mesh)), strict=False)
    algorithm = algorithms.fedavg(
        learner,
        LocalTraining(optax.sgd(learning_rate), batch_size),
        execution=arguments.client_execution,
        mesh=mesh,
        lanes=arguments.lanes,
        diagnostics=not arguments.no_diagnostics,
    )
    variables = learner.init(jax.random.key(0))
    state = algorithm.init(variables, len(sizes))
    tested = np.random.default_rng(0).choice(len(y), 1000, replace=False)

    def loss(variables):
        return evaluation.evaluate(
            learner, variables, x[tested], y[tested], num_classes, batch_size=500
        ).loss

    rounds = measure.Rounds()
    for r in range(len(cohorts)):
        rounds.begin()
        cohort, data = next(rows)
        key = jax.random.fold_in(jax.random.key(1), r)
        state, metrics = algorithm.round(state, data, cohort, key)
        jax.block_until_ready((state, metrics))
        rounds.end()
        if not r:
            loss_before = loss(variables)
            if arguments.in_turn:
                measure.wait_for_turn()
    report = measure.report(
        "gptfl-jax", arguments.workload, rounds, memory, sizes[schedule]
    )
    on_device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    matmul = matmul_rate(mesh)
    operations = operations_an_example(learner, x[:1], y[:1])
    share = report["examples_per_s"] * operations / matmul
    return dict(
        **report,
        loss_before=round(float(loss_before), 4),
        loss_after=round(float(loss(state.variables)), 4),
        matmul_gflops=round(matmul / 1e9, 1),
        share_of_matmul_rate=round(share, 3),
        client_execution=arguments.client_execution,
        data_placement=arguments.data_placement,
        devices=jax.device_count(),
        device_mb=None if on_device is None else round(on_device / 2**20),
        card=jax.devices()[0].device_kind,
        jax=jax.__version__,
    )


def operations_an_example(learner: training.Learner, x: Array, y: Array) -> int:
    """Multiplications and additions of convolutions and products, all of them direct.

    Forward and backward; the first layer needs no gradient of its input.
    """
    variables = jax.eval_shape(learner.init, jax.random.key(0))
    batch = training.Batch(x, y, np.ones(1, np.float32))
    with convolution.form("lax"):
        jaxpr = jax.make_jaxpr(learner.loss)(variables, batch, jax.random.key(0))
    products = _products(jaxpr.jaxpr)
    return 3 * sum(products) - products[0]


def _products(jaxpr: Any, times: int = 1) -> list[int]:
    """Operations of each convolution and matrix product, in their order."""
    found = []
    for equation in jaxpr.eqns:
        inner = times * equation.params.get("length", 1)
        for parameter in equation.params.values():
            parameter = getattr(parameter, "jaxpr", parameter)
            if isinstance(parameter, core.Jaxpr):
                found += _products(parameter, inner)
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            taps = math.prod(equation.invars[1].aval.shape[:-1])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            taps = math.prod(left[axis] for axis in contracted)
        else:
            continue
        found.append(2 * times * math.prod(out.shape) * taps)
    return found


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
