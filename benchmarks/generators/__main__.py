"""Every generator against its PyTorch counterpart, on the same random weights.

  python -m benchmarks.generators --output docs/performance.md

Needs the `parity` extra. Networks in the sizes of Stable Diffusion 2.1, T5-base,
SpeechT5, HiFi-GAN and AudioLDM, and the shipped glyphs and voices as whole pipelines,
in float32. Either side runs a case in a process of its own with all cores, so that the
peak of its memory, loading included, is the case's own. Both load the same files, take
turns, so that other work on the machine meets both alike, and must agree; medians
count. A UNet step of ours is the sampler's, which made the prompt's keys and values
before its first step. The first call, which compiles, is given apart.

Where JAX has a GPU both sides run on it, in float32 with NVIDIA's TF32 as JAX does by
default, or with `--dtype bfloat16`; memory is then that of the GPU, and Stable
Diffusion 2.1 is measured whole.

What was measured is kept in `--folder` and not measured again: a run that was
interrupted goes on, and `--only unet64 --batch 2` measures a part of the table.
"""

import argparse
import importlib
import itertools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import document
from benchmarks.generators.cases import CASES, ROUNDED, Case

_SIDES = {
    "ours": "benchmarks.generators.in_jax",
    "torch": "benchmarks.generators.in_torch",
}


def main() -> None:
    """Measures what is missing, prints a line a case and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, help="default: all")
    parser.add_argument("--batch", type=int, nargs="+", help="default: all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="what was measured, too")
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path("runs/benchmarks")
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="page to put the table in; default: none"
    )
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(CASES[arguments.only[0]], arguments.batch[0], arguments)
        return
    arguments.folder = arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    file = arguments.folder / "generators.json"
    reports = json.loads(file.read_text()) if file.exists() else {}
    backend, device = jax_device()
    on_gpu = backend == "gpu"
    names = arguments.only or [c.name for c in CASES.values() if on_gpu or not c.on_gpu]
    rows = {
        f"{name}:{batch}:{arguments.dtype}": (CASES[name], batch)
        for name in names
        for batch in arguments.batch or CASES[name].batches
    }
    missing = {k: row for k, row in rows.items() if k not in reports or arguments.again}
    make_models({case.model for case, _ in missing.values()} - {""}, arguments.folder)
    # On a GPU all load and compile at the same time.
    started = {k: Pair(*row, arguments) for k, row in missing.items() if on_gpu}
    for pair in started.values():
        pair.warm_up()
    for key, (case, batch) in rows.items():
        if key in missing:
            pair = started.get(key) or Pair(case, batch, arguments)
            report = pair.measure(arguments.repeats, on_gpu)
            if report is None:
                continue
            reports[key] = report
            file.write_text(json.dumps(reports, indent=1))
        print(key, json.dumps(reports[key]), flush=True)
    if arguments.output:
        table = describe(reports, device)
        document.write(f"generators on {backend}", table, arguments.output)


def jax_device() -> tuple[str, str]:
    """JAX's backend and device, asked in a process that lets go of it again."""
    ask = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"
    found = subprocess.run(
        [sys.executable, "-c", ask], check=True, capture_output=True, text=True
    )
    backend, _, kind = found.stdout.splitlines()[-1].partition(" ")
    return backend, kind


def make_models(names: Iterable[str], folder: pathlib.Path) -> None:
    """Writes those networks with random weights that the folder lacks."""
    command = [sys.executable, "-m", "benchmarks.generators.random_models"]
    for name in sorted(names):
        if not (folder / name).exists():
            subprocess.run([*command, name, str(folder / name)], check=True)


class Pair:
    """Both sides of a row, each a process, ours started first."""

    def __init__(self, case: Case, batch: int, arguments: argparse.Namespace):
        self.case, self.text = case, f"{case.name}, batch {batch}"
        self.outputs = {
            side: arguments.folder / f"output_{case.name}_{batch}_{side}.npy"
            for side in _SIDES
        }
        self._arguments = arguments
        self._command = [sys.executable, "-m", "benchmarks.generators"]
        self._command += ["--only", case.name, "--batch", str(batch)]
        self._command += ["--dtype", arguments.dtype, "--folder", arguments.folder]
        self._processes: dict[str, subprocess.Popen] = {}
        self._first: dict[str, float] = {}

    def warm_up(self) -> None:
        """Has both load and compile, without waiting for them."""
        for side in _SIDES:
            self._start(side)

    def measure(self, repeats: int, on_gpu: bool) -> dict | None:
        """Both in turn; None, after a line that says why, where there is no figure."""
        try:
            return self._measure(repeats, on_gpu)
        except _Failed as error:
            for process in self._processes.values():
                process.kill()
            print(f"{self.text}: {error}", file=sys.stderr, flush=True)
            return None

    def _measure(self, repeats, on_gpu):
        for side in _SIDES:  # One loads and compiles after the other, if not before.
            if side not in self._processes:
                self._start(side)
            self._first[side] = self._answer(side)
        turns = [{side: self._run(side) for side in _SIDES} for _ in range(repeats)]
        report: dict[str, Any] = {}
        for side, process in self._processes.items():
            process.stdin.close()
            report[f"{side}_s"] = statistics.median(turn[side] for turn in turns)
            report[f"{side}_first_s"] = self._first[side]
            report[f"{side}_mb"] = float(process.stdout.read())
            process.wait()
        ours, theirs = (np.load(self.outputs[side]) for side in _SIDES)
        if ours.shape != theirs.shape:
            raise _Failed(f"{ours.shape} of ours, {theirs.shape} of PyTorch")
        if on_gpu:  # Single values of TF32 and bfloat16 may round far, most do not.
            tolerance = ROUNDED
            size, apart = (np.sqrt(np.mean(x**2)) for x in (theirs, ours - theirs))
        else:
            tolerance = self.case.tolerance
            size, apart = (np.abs(x).max() for x in (theirs, ours - theirs))
        difference = float(apart / max(size, 1e-9))
        if not difference < tolerance:
            raise _Failed(f"outputs differ by {difference}")
        return report | {"difference": difference}

    def _start(self, side):
        self._processes[side] = subprocess.Popen(
            [*self._command, "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Both are on the GPU at once, and what they take is read.
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        self._ask(side)

    def _run(self, side):
        self._ask(side)
        return self._answer(side)

    def _ask(self, side):
        self._processes[side].stdin.write("\n")
        self._processes[side].stdin.flush()

    def _answer(self, side):
        line = self._processes[side].stdout.readline()
        if not line:
            raise _Failed(f"{side} ended")
        return float(line)


class _Failed(Exception):
    """A row that has no figures."""


def run_side(case: Case, batch: int, arguments: argparse.Namespace) -> None:
    """Runs the case once for each line of the standard input, and says the seconds."""
    side = importlib.import_module(_SIDES[arguments.side])
    function = side.side(case, batch, arguments.folder / case.model, arguments.dtype)
    output = None
    for _ in sys.stdin:
        start = time.perf_counter()
        output = function()
        print(time.perf_counter() - start, flush=True)
    name = f"output_{case.name}_{batch}_{arguments.side}.npy"
    np.save(arguments.folder / name, output)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_device = side.peak_bytes()
    print(peak_kb / 1024 if on_device is None else on_device / 2**20)


def describe(reports: dict[str, dict], device: str) -> str:
    """A table in Markdown, measured on `device`: a line a case, batch size, dtype."""
    header = ["", "batch", "dtype", "ours", "PyTorch", "times as fast"]
    header += ["peak memory, ours", "PyTorch's", "ratio", "first call, ours"]
    rows = []
    for case in CASES.values():
        for batch, dtype in itertools.product(case.batches, ("float32", "bfloat16")):
            report = reports.get(f"{case.name}:{batch}:{dtype}")
            if report is None:
                continue
            rows.append(
                [
                    case.text,
                    batch,
                    dtype,
                    f"{report['ours_s']:.3g} s",
                    f"{report['torch_s']:.3g} s",
                    f"{report['torch_s'] / report['ours_s']:.2f}",
                    f"{report['ours_mb']:,.0f} MB",
                    f"{report['torch_mb']:,.0f} MB",
                    f"{report['ours_mb'] / report['torch_mb']:.2f}",
                    f"{report['ours_first_s']:.1f} s",
                ]
            )
    import diffusers
    import torch
    import transformers

    versions = ", ".join(
        f"{name} {module.__version__}"
        for name, module in (
            ("PyTorch", torch),
            ("diffusers", diffusers),
            ("transformers", transformers),
        )
    )
    where = f"{document.circumstances()} {versions}, on {device}."
    return f"{where}\n\n{document.table(header, rows)}"


if __name__ == "__main__":
    main()
