"""Does a round cost the same whatever the number of clients?

  python -m benchmarks.population

deals 10 million rows of 8 features to 10 thousand, 100 thousand and 1 million clients
of log-normal size, and runs rounds of federated averaging with a cohort of 100 and a
fixed number of local steps, so that the work of a round is the same. One process a
population; it prints a line of JSON:

- partition_s: to number the clients and sort all rows by client;
- cohort_s: to draw a cohort;
- round_s: median over the rounds after the first;
- beyond_data_mb: peak memory of the process beyond the rows themselves, in rounds.

`--keys FILE` takes sizes from a list of recordings instead, one `<speaker>_nohash_...`
a line, as the Speech Commands data set names them: its speakers are the clients.
"""

from benchmarks import document, measure  # First: measure starts the clock.

# ruff: isort: split
import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from gptfl_jax import training
from gptfl_jax.data import federated_data, partition
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.fl import algorithms, diagnostics, sampling
from gptfl_jax.fl.execution import clients_mesh, place
from gptfl_jax.fl.local_training import LocalTraining

CLASSES = 10
FEATURES = 8


class Perceptron(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch features"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits."""
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(64)(inputs)))


def main() -> None:
    """Starts one process a population, or is one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--populations", type=int, nargs="+", default=[10_000, 100_000, 1_000_000]
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=300, help="after the first")
    parser.add_argument("--keys", type=pathlib.Path, help="recordings, one a line")
    parser.add_argument(
        "--output", type=pathlib.Path, help="page to put the table in; default: none"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(_run(arguments)), flush=True)
        return
    populations = arguments.populations[:1] if arguments.keys else arguments.populations
    reports = []
    for population in populations:
        command = [sys.executable, "-m", "benchmarks.population", "--here"]
        command += ["--populations", str(population), "--rows", str(arguments.rows)]
        command += ["--cohort", str(arguments.cohort)]
        command += ["--rounds", str(arguments.rounds)]
        if arguments.keys:
            command += ["--keys", str(arguments.keys)]
        ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(ended.stdout, end="", flush=True)
        reports.append(json.loads(ended.stdout))
    if arguments.output:
        name = "speakers" if arguments.keys else "population"
        document.write(name, describe(reports), arguments.output)


def describe(reports: list[dict]) -> str:
    """A table in Markdown, a line a population."""
    header = ["clients", "rows", "cohort", "partitioned in", "cohort drawn in"]
    header += ["round", "best round", "rows on the device", "memory beyond them"]
    rows = [
        [
            f"{r['clients']:,}",
            f"{r['rows']:,}",
            r["cohort"],
            f"{r['partition_s']:.1f} s",
            f"{1000 * r['cohort_s']:.1f} ms",
            f"{1000 * r['round_s']:.1f} ms",
            f"{1000 * r['best_round_s']:.1f} ms",
            f"{r['data_mb']:,} MB",
            f"{r['beyond_data_mb']:,} MB",
        ]
        for r in reports
    ]
    return f"{document.circumstances()}\n\n{document.table(header, rows)}"


def _run(arguments: argparse.Namespace) -> dict:
    memory = measure.Memory()
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    generator = np.random.default_rng(0)
    if arguments.keys:
        names = arguments.keys.read_text().split()
        owners = np.array([name.partition("_nohash_")[0] for name in names])
    else:
        owners = log_normal(arguments.rows, arguments.populations[0], generator)
    rows = len(owners)
    inputs = generator.standard_normal((rows, FEATURES), np.float32)
    labels = generator.integers(0, CLASSES, rows, dtype=np.int32)
    start = time.perf_counter()
    client_of_example = partition.natural(owners)
    num_clients = int(client_of_example.max()) + 1
    names = tuple(str(label) for label in range(CLASSES))
    dataset = Dataset(inputs, labels, names, None)
    host_data = federated_data.federate(dataset, client_of_example, num_clients)
    partition_s = time.perf_counter() - start
    del dataset, inputs, labels, owners, client_of_example

    learner = training.make_learner(
        Perceptron(), jax.ShapeDtypeStruct((FEATURES,), np.float32)
    )
    mesh = clients_mesh()
    data = jax.block_until_ready(place(host_data, mesh))
    copies = 1 if mesh is None else mesh.size
    data_mb = copies * diagnostics.size_in_bytes(data) / 2**20
    del host_data
    local = LocalTraining(optax.sgd(0.05), batch_size=10, steps=20)
    algorithm = algorithms.fedavg(learner, local, mesh=mesh)
    state = algorithm.init(learner.init(jax.random.key(0)), num_clients)
    # From here on: the sorting above takes memory of its own, and gives it back.
    memory.peak_mb = 0.0
    draw = jax.jit(
        functools.partial(
            sampling.cohort, num_clients=num_clients, size=arguments.cohort
        )
    )
    cohort_s, round_s = [], []
    for r in range(arguments.rounds + 1):
        start = time.perf_counter()
        cohort = jax.block_until_ready(draw(jax.random.key(1), r))
        drawn = time.perf_counter()
        key = jax.random.fold_in(jax.random.key(2), r)
        state, metrics = algorithm.round(state, data, cohort, key)
        jax.block_until_ready((state, metrics))
        cohort_s.append(drawn - start)
        round_s.append(time.perf_counter() - drawn)
    memory.sample()
    return dict(
        clients=num_clients,
        rows=rows,
        cohort=arguments.cohort,
        partition_s=round(partition_s, 2),
        cohort_s=round(float(np.median(cohort_s[1:])), 4),
        round_s=round(float(np.median(round_s[1:])), 4),
        best_round_s=round(min(round_s[1:]), 4),
        first_round_s=round(round_s[0], 2),
        data_mb=round(data_mb),
        beyond_data_mb=round(memory.peak_mb - data_mb),
        devices=jax.device_count(),
    )


def log_normal(
    rows: int, num_clients: int, generator: np.random.Generator
) -> np.ndarray:
    """Client of each row, in random order; sizes spread by a factor e, none empty."""
    shares = np.exp(generator.standard_normal(num_clients))
    ends = np.cumsum(shares) / shares.sum() * (rows - num_clients)
    sizes = 1 + np.diff(np.rint(ends).astype(np.int64), prepend=0)
    return generator.permutation(np.repeat(np.arange(num_clients), sizes))


if __name__ == "__main__":
    main()
