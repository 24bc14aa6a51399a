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
    file = arguments.folder / "generators.json"
    reports = json.loads(file.read_text()) if file.exists() else {}
    arguments.device = jax_platform()
    on_gpu = arguments.device == "gpu"
    names = arguments.only or [c.name for c in CASES.values() if on_gpu or not c.on_gpu]
    for case in (CASES[name] for name in names):
        for batch in arguments.batch or case.batches:
            key = f"{case.name}:{batch}:{arguments.dtype}"
            if key not in reports or arguments.again:
                reports[key] = measure(case, batch, arguments)
                file.write_text(json.dumps(reports, indent=1))
            print(key, json.dumps(reports[key]), flush=True)
    if arguments.output:
        table = describe(reports, arguments.device)
        document.write(f"generators on {arguments.device}", table, arguments.output)


def jax_platform() -> str:
    """Where JAX runs programs, asked in a process that lets go of it again."""
    found = subprocess.run(
        [sys.executable, "-c", "import jax; print(jax.default_backend())"],
        check=True,
        capture_output=True,
        text=True,
    )
    return found.stdout.split()[-1]


def measure(case: Case, batch: int, arguments: argparse.Namespace) -> dict:
    """Both sides in turn.

    Raises:
        SystemExit: a side failed, or they do not agree.
    """
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if case.model and not (folder / case.model).exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.generators.random_models"),
                *(case.model, str(folder / case.model)),
            ],
            check=True,
        )
    sides: dict[str, subprocess.Popen] = {}

    def run(side: str) -> float:
        process = sides[side]
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{case.name}, batch {batch}: {side} failed")
        return float(line)

    first = {}
    for side in _SIDES:  # One loads and compiles after the other.
        command = [sys.executable, "-m", "benchmarks.generators", "--side", side]
        command += ["--only", case.name, "--batch", str(batch)]
        command += ["--dtype", arguments.dtype]
        sides[side] = subprocess.Popen(
            [*command, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Both are on the GPU at once, and what they take is read.
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        first[side] = run(side)
    turns = [{side: run(side) for side in sides} for _ in range(arguments.repeats)]
    report: dict[str, Any] = {}
    for side, process in sides.items():
        process.stdin.close()
        report[f"{side}_s"] = statistics.median(turn[side] for turn in turns)
        report[f"{side}_first_s"] = first[side]
        report[f"{side}_mb"] = float(process.stdout.read())
        process.wait()
    ours, theirs = (np.load(folder / f"output_{side}.npy") for side in _SIDES)
    if ours.shape != theirs.shape:
        raise SystemExit(f"{case.name}, batch {batch}: {ours.shape}, {theirs.shape}")
    tolerance = case.tolerance
    if arguments.device == "cpu":
        difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-9)
    else:  # Single values of TF32 and bfloat16 may round far, most do not.
        tolerance = ROUNDED
        deviations = [np.sqrt(np.mean(np.square(x))) for x in (ours - theirs, theirs)]
        difference = deviations[0] / max(deviations[1], 1e-9)
    if not difference < tolerance:
        raise SystemExit(f"{case.name}, batch {batch}: outputs differ by {difference}")
    return report | {"difference": float(difference)}


def run_side(case: Case, batch: int, arguments: argparse.Namespace) -> None:
    """Runs the case once for each line of the standard input, and says the seconds."""
    folder = arguments.folder / case.model
    side = importlib.import_module(_SIDES[arguments.side])
    function = side.side(case, batch, folder, arguments.dtype)
    output = None
    for _ in sys.stdin:
        start = time.perf_counter()
        output = function()
        print(time.perf_counter() - start, flush=True)
    np.save(arguments.folder / f"output_{arguments.side}.npy", output)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_device = side.peak_bytes()
    print(peak_kb / 1024 if on_device is None else on_device / 2**20)


def describe(reports: dict[str, dict], device: str) -> str:
    """A table in Markdown, a line a case, batch size and dtype."""
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
    where = f"{document.circumstances()} {versions}, on the {device.upper()}."
    return f"{where}\n\n{document.table(header, rows)}"


if __name__ == "__main__":
    main()
