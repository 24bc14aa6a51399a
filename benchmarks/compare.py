"""This engine and other simulators on the same work, on this machine, in one go.

  python -m benchmarks.compare --peers VENVS --scripts SCRIPTS --data DATA

VENVS holds a virtual environment for each simulator (`VENVS/pfl/bin/python`, ...);
those installed are run. For w1 and w2, SCRIPTS has a script for each (`peer_pfl.py`,
...) that takes --workload, --rounds and --data and prints one line of JSON; for the
others, `benchmarks/peers` has a loop in torch. DATA is that of `benchmarks.fl_round`,
made by SCRIPTS/gen_data.py and `benchmarks.peers.make_data`. Everybody runs in turn,
`--repeats` times, so that other work on the machine meets all of them; rates and memory
in the table are medians, the ratio is the median of the ratios within a turn. Other
work moves processor time least.

With `--gpu` everybody runs on one GPU: ours, with so many clients side by side as
`--lanes` says, and the loop in torch, in one process and in several. They compile and
warm up at the same time, and are measured one after the other.

A table a workload goes between two marks in docs/performance.md, with machine and
versions.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from benchmarks import document, measure

OURS = "gptfl-jax"
WORKLOADS = ("w1", "w2", "w3", "w4", "w5")


class Peer(NamedTuple):
    """How a simulator is run at its best on two cores."""

    name: str
    environments: tuple[str, ...]
    """Folders of VENVS that have what it needs, the first found is taken."""
    command: tuple[str, ...]
    """{bin} and {scripts} stand for the folders."""
    variables: dict[str, str] = {}
    workloads: tuple[str, ...] = ("w1", "w2")


# One thread a process where there are two of them: torch's threads wait by spinning.
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PEERS = (
    Peer(
        "pfl, two processes",
        ("pfl",),
        ("{bin}/torchrun", "--nproc_per_node=2", "{scripts}/peer_pfl.py"),
        _ONE_THREAD,
    ),
    Peer(
        "torch loop, two processes",
        ("torchseq", "pfl"),
        ("{bin}/python", "{scripts}/peer_torch_loop.py", "--workers", "2"),
        _ONE_THREAD,
    ),
    Peer(
        "torch loop, two processes",
        ("torchseq", "pfl"),
        ("{bin}/python", "-m", "benchmarks.peers.torch_loop", "--workers", "2"),
        _ONE_THREAD,
        ("w3", "w4", "w5"),
    ),
    Peer("FedJAX", ("fedjax",), ("{bin}/python", "{scripts}/peer_fedjax.py")),
    Peer("DrJAX", ("drjax",), ("{bin}/python", "{scripts}/peer_drjax.py")),
    Peer("Flower", ("flower",), ("{bin}/python", "{scripts}/peer_flower.py")),
)


class Result(NamedTuple):
    """One run."""

    fields: dict
    """The line that it printed."""
    peak_mb: float
    """Of the whole process tree, measured from outside."""


def main() -> None:
    """Runs everybody and writes the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=pathlib.Path, help="VENVS")
    parser.add_argument("--scripts", type=pathlib.Path, help="needed for w1 and w2")
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument(
        "--workloads", nargs="+", default=["w1", "w2", "w3", "w4", "w5"]
    )
    parser.add_argument("--only", nargs="+", help="environments to run, as pfl fedjax")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="all of them on one GPU")
    parser.add_argument(
        "--lanes", type=int, nargs="+", default=[0], help="on a GPU; 0: by itself"
    )
    parser.add_argument("--output", type=pathlib.Path, default=document.PAGE)
    arguments = parser.parse_args()
    if arguments.gpu:
        compare_on_gpu(arguments)
        return
    if arguments.peers is None:
        parser.error("--peers is missing: the folder of their virtual environments")
    if arguments.scripts is None and not {"w1", "w2"}.isdisjoint(arguments.workloads):
        parser.error("--scripts is missing: w1 and w2 need it")
    contenders = {w: find_contenders(arguments, w) for w in arguments.workloads}
    results = {w: {name: [] for name in contenders[w]} for w in arguments.workloads}
    for repeat in range(arguments.repeats):
        for workload in arguments.workloads:
            for name, (command, variables) in contenders[workload].items():
                options = ["--workload", workload, "--rounds", str(arguments.rounds)]
                options += ["--data", str(arguments.data.resolve())]
                result = run([*command, *options], variables)
                if result is None:
                    print(f"{name}, {workload}: failed", file=sys.stderr, flush=True)
                    continue
                results[workload][name].append(result)
                rate = result.fields["examples_per_s"]
                print(f"{repeat + 1}: {workload} {name}: {rate} examples/s", flush=True)
                print(json.dumps(result.fields), flush=True)
            # After every turn: a comparison cut short has its table.
            table = describe(workload, results[workload], arguments, repeat + 1)
            document.write(f"compare {workload}", table, arguments.output)


def compare_on_gpu(arguments: argparse.Namespace) -> None:
    """Runs everybody, by the Python that runs this, and writes the tables."""
    contenders = {
        f"{OURS}, {lanes} side by side" if lanes else OURS: (
            *("benchmarks.fl_round", "--lanes", str(lanes)),
        )
        for lanes in arguments.lanes
    }
    for name, workers in (("one process", 1), ("eight processes", 8)):
        contenders[f"torch loop, {name}"] = (
            *("benchmarks.peers.torch_loop", "--device", "cuda"),
            *("--workers", str(workers)),
        )
    options = ["--rounds", str(arguments.rounds), "--in-turn"]
    options += ["--data", str(arguments.data.resolve())]
    running = {
        (workload, name): subprocess.Popen(
            [sys.executable, "-m", *command, *options, "--workload", workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # They share the GPU, and what they take is read.
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        for workload in arguments.workloads
        for name, command in contenders.items()
    }
    warm = {each for each, p in running.items() if p.stdout.readline() == "ready\n"}
    results = {workload: {} for workload in arguments.workloads}
    for (workload, name), process in running.items():
        output, _ = process.communicate("\n" if (workload, name) in warm else None)
        if process.returncode:
            print(f"{name}, {workload}: failed", file=sys.stderr, flush=True)
            continue
        fields = json.loads(output.splitlines()[-1])
        print(json.dumps(fields), flush=True)
        results[workload][name] = [Result(fields, fields["device_mb"] or 0.0)]
    for workload, by_name in results.items():
        table = describe_on_gpu(workload, by_name, arguments.rounds)
        document.write(f"compare {workload} on gpu", table, arguments.output)


def find_contenders(
    arguments: argparse.Namespace, workload: str
) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Command and environment variables of ours and every installed peer, by name."""
    contenders = {OURS: ([sys.executable, "-m", "benchmarks.fl_round"], {})}
    scripts = arguments.scripts and arguments.scripts.resolve()
    for peer in PEERS:
        if workload not in peer.workloads:
            continue
        for environment in peer.environments:
            if arguments.only and environment not in arguments.only:
                continue
            # Not resolve(): a venv's python is a link, and must be called by its name.
            folder = arguments.peers.absolute() / environment / "bin"
            if (folder / "python").exists():
                command = [
                    part.format(bin=folder, scripts=scripts) for part in peer.command
                ]
                contenders[peer.name] = command, peer.variables
                break
        else:
            print(f"{peer.name}: not installed in {arguments.peers}", flush=True)
    return contenders


def run(command: list[str], variables: dict[str, str]) -> Result | None:
    """Runs it and reads the line it prints; None if there is none."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    peak_mb = 0.0
    ended = threading.Event()

    def watch():
        nonlocal peak_mb
        # Not more often: for large processes the kernel takes long to tell.
        while not ended.wait(2):
            peak_mb = max(peak_mb, measure.memory_mb(process.pid)[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, errors = process.communicate()
    ended.set()
    watcher.join()
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        print(errors[-2000:], file=sys.stderr)
        return None
    time.sleep(1)  # Let what it left behind end.
    return Result(json.loads(lines[-1]), peak_mb)


def describe(
    workload: str,
    by_name: dict[str, list[Result]],
    arguments: argparse.Namespace,
    turns: int,
) -> str:
    """The table in Markdown, below the machine and the versions."""
    ran = {name: runs for name, runs in by_name.items() if runs}
    rates = {
        name: statistics.median(r.fields["examples_per_s"] for r in runs)
        for name, runs in ran.items()
    }
    peers = [name for name in rates if name != OURS]
    best = max(peers, key=rates.get, default=None)
    rows = []
    for name in sorted(rates, key=rates.get, reverse=True):
        fields = [r.fields for r in ran[name]]
        clients = statistics.median(f["clients_per_s"] for f in fields)
        first = statistics.median(f["startup_to_first_round_s"] for f in fields)
        processor = statistics.median(f["cpu_ms_per_example"] for f in fields)
        memory = statistics.median(r.peak_mb for r in ran[name])
        relative = "-" if best is None else f"{ratio(ran[name], ran[best]):.2f}"
        rows.append(
            [
                f"{name}{_versions(fields[0])}",
                f"{rates[name]:,.0f}",
                f"{clients:,.1f}",
                f"{first:.1f} s",
                f"{memory:,.0f} MB",
                f"{processor:,.2f} ms",
                relative,
            ]
        )
    header = ["", "examples/s", "clients/s", "first round done after"]
    header += ["peak memory", "processor time an example"]
    header += ["examples/s, relative to the fastest peer"]
    lines = [
        f"**{workload}**: {document.circumstances()} Turns: {turns}, each of "
        f"{arguments.rounds} rounds after one that warms up.",
        "",
        document.table(header, rows),
    ]
    if OURS in ran:
        fields = ran[OURS][-1].fields
        share = statistics.median(r.fields["share_of_matmul_rate"] for r in ran[OURS])
        lines += [
            "",
            f"Ours reaches {share:.0%} of the machine's rate on plain matrix products "
            f"({fields['matmul_gflops']:,.0f} GFLOP/s), counting the operations of a "
            "direct convolution.",
        ]
    return "\n".join(lines) + "\n"


def describe_on_gpu(
    workload: str, by_name: dict[str, list[Result]], rounds: int
) -> str:
    """The table in Markdown, below the card, the machine and the versions."""
    rates = {name: runs[0].fields["examples_per_s"] for name, runs in by_name.items()}
    peers = [rate for name, rate in rates.items() if not name.startswith(OURS)]
    best, rows, card = max(peers, default=None), [], ""
    for name in sorted(rates, key=rates.get, reverse=True):
        [(fields, memory)] = by_name[name]
        card = fields.get("card", card)
        relative = "-" if best is None else f"{rates[name] / best:.2f}"
        row = [f"{name}{_versions(fields)}", f"{rates[name]:,.0f}"]
        row += [f"{fields['clients_per_s']:,.0f}", f"{memory:,.0f} MB", relative]
        rows.append(row)
    header = ["", "examples/s", "clients/s", "memory of the GPU"]
    header += ["relative to the fastest peer"]
    where = f"**{workload}** on one {card}: {document.circumstances()}"
    how = f"{rounds} rounds after one that warms up, one program after the other."
    return f"{where} {how}\n\n{document.table(header, rows)}\n"


def ratio(ours: list[Result], theirs: list[Result]) -> float:
    """Median over the turns of the ratio of rates within a turn."""
    pairs = zip(ours, theirs, strict=False)
    return statistics.median(
        a.fields["examples_per_s"] / b.fields["examples_per_s"] for a, b in pairs
    )


def _versions(fields: dict) -> str:
    known = [f"{k} {fields[k]}" for k in ("torch", "flwr", "jax") if k in fields]
    return f" ({', '.join(known)})" if known else ""


if __name__ == "__main__":
    main()
