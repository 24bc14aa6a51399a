"""Does memory grow with the rounds?

  python -m benchmarks.memory --config configs/digits.py

runs `federated.simulate` for 500 rounds, with its tests and checkpoints, for each of
the algorithms named, and samples the memory of the process as rounds pass. FedAvg keeps
nothing at its clients; SCAFFOLD keeps a control variate for each client that has taken
part, which grows until all have. It prints a line of JSON an algorithm: megabytes after
a number of rounds, and the growth over the second half.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import document, measure


def main() -> None:
    """Runs each algorithm, prints its line and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--algorithms", nargs="+", default=["fedavg", "scaffold"])
    parser.add_argument(
        "--output", type=pathlib.Path, help="page to put the table in; default: none"
    )
    arguments = parser.parse_args()
    reports = []
    for algorithm in arguments.algorithms:
        reports.append(run(arguments.config, algorithm, arguments.rounds))
        print(json.dumps(reports[-1]), flush=True)
    if arguments.output:
        document.write("memory", describe(reports), arguments.output)


def run(config: str, algorithm: str, rounds: int) -> dict:
    """Runs one federation and follows its memory."""
    samples = []
    with tempfile.TemporaryDirectory() as workdir:
        folder = pathlib.Path(workdir) / "federated" / "memory"
        command = [sys.executable, "-m", "federated.simulate", f"--config={config}"]
        command += [f"--workdir={workdir}", "--config.federated.run=memory"]
        command += [f"--config.federated.rounds={rounds}"]
        command += [f"--config.federated.algorithm={algorithm}"]
        command += ["--config.federated.init=random"]
        command += ["--config.federated.learning_rate_schedule=constant"]
        command += ["--config.federated.checkpoint_every=10"]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            megabytes, _ = measure.memory_mb(process.pid)
            samples.append((_rounds_done(folder / "metrics.jsonl"), megabytes))
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    done, megabytes = np.array(samples).T

    def around(share: float) -> float:
        """Median over a tenth of the rounds: single samples catch a save or a test."""
        near = np.abs(done - share * rounds) <= rounds / 20
        return round(float(np.median(megabytes[near & (done < rounds)])), 1)

    shares = (0.1, 0.25, 0.5, 0.75, 0.95)
    return dict(
        algorithm=algorithm,
        rounds=rounds,
        megabytes={round(share * rounds): around(share) for share in shares},
        growth_mb_in_second_half=round(around(0.95) - around(0.5), 1),
    )


def _rounds_done(file: pathlib.Path) -> int:
    try:
        return max(0, file.read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


def describe(reports: list[dict]) -> str:
    """A table in Markdown, a line an algorithm."""
    after = [f"after {number} rounds" for number in reports[0]["megabytes"]]
    rows = [
        [r["algorithm"], *(f"{value:,.0f} MB" for value in r["megabytes"].values())]
        for r in reports
    ]
    return f"{document.circumstances()}\n\n{document.table(['', *after], rows)}"


if __name__ == "__main__":
    main()
