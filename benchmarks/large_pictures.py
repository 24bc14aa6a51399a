"""What pictures of 224 pixels cost: decoding, memory, and how long steps wait for them.

  python -m benchmarks.large_pictures FOLDER

makes folders of JPEG pictures (256x288) in FOLDER, and for each number of them starts
two processes one after the other, which read them as `image_folder` at 224 pixels. The
first decodes them. The second finds them decoded, and trains a ResNet-18 on some of
them, from all over the set, streamed as stage 2 does. Each prints a line of JSON:

- loaded_s: to have the data set, decoded;
- anonymous_mb: memory of the process that no file stands behind, after that;
- read_per_s: pictures a second that one thread copies from the file, in random order;
- step_s, waited: of an epoch after the first, and the share of it in which the device
  had nothing to do until the next examples came;
- peak_anonymous_mb: while it trained, on batches of this size.

Linux only (/proc).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import optax
import PIL.Image

from benchmarks import document
from gptfl_jax import central_training, models, training
from gptfl_jax.data import datasets, sources

CLASSES = 10
SIDE = 224


def main() -> None:
    """Makes the pictures and starts the processes, or is one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, help="for pictures and arrays")
    parser.add_argument("--pictures", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="an epoch, of two")
    parser.add_argument(
        "--output", type=pathlib.Path, help="page to put the table in; default: none"
    )
    parser.add_argument("--here", choices=("decode", "train"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(_run(arguments)), flush=True)
        return
    reports = []
    for count in arguments.pictures:
        folder = arguments.folder / f"{count} pictures"
        make_pictures(folder, count)
        report = {"pictures": count}
        for what in ("decode", "train"):
            command = [sys.executable, "-m", "benchmarks.large_pictures", str(folder)]
            command += ["--here", what, "--batch", str(arguments.batch)]
            command += ["--steps", str(arguments.steps)]
            ended = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "GPTFL_CACHE_DIR": str(arguments.folder / "cache")},
            )
            line = ended.stdout.splitlines()[-1]
            print(line, flush=True)
            report[what] = json.loads(line)
        reports.append(report)
    if arguments.output:
        document.write("large pictures", describe(reports), arguments.output)


def describe(reports: list[dict]) -> str:
    """A table in Markdown, a line a number of pictures."""
    header = ["pictures", "decoded", "decoding", "memory after it", "found in"]
    header += ["memory after it", "memory in training", "a step", "of it waiting"]
    header += ["read by a thread"]
    rows = []
    for report in reports:
        decoded, trained = report["decode"], report["train"]
        rows.append(
            [
                f"{report['pictures']:,}",
                f"{report['pictures'] * SIDE**2 * 3 / 1e9:.1f} GB",
                f"{decoded['loaded_s']:.1f} s",
                f"{decoded['anonymous_mb']:,.0f} MB",
                f"{trained['loaded_s']:.1f} s",
                f"{trained['anonymous_mb']:,.0f} MB",
                f"{trained['peak_anonymous_mb']:,.0f} MB",
                f"{trained['step_s']:.2f} s",
                f"{trained['waited']:.2%}",
                f"{trained['read_per_s']:,.0f} pictures/s",
            ]
        )
    return f"{document.circumstances()}\n\n{document.table(header, rows)}"


def make_pictures(folder: pathlib.Path, count: int) -> None:
    """JPEG pictures that all differ, in a folder a class; those there are kept."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (64, 16, 16, 3), np.uint8)
    bases = [
        np.asarray(PIL.Image.fromarray(each).resize((288, 256), PIL.Image.BICUBIC))
        for each in coarse
    ]

    def make(number: int) -> None:
        file = folder / f"class {number % CLASSES}" / f"{number:06d}.jpg"
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = bases[number % len(bases)].copy()
        for bit in range(20):  # the number, in bars
            if number >> bit & 1:
                pixels[8:40, 10 + 12 * bit : 20 + 12 * bit] ^= 255
        part = file.with_suffix(".part")
        PIL.Image.fromarray(pixels).save(part, "JPEG", quality=85)
        os.replace(part, file)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))


class AnonymousMemory(threading.Thread):
    """Samples the process's memory that no file stands behind."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.start()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.sample()
            time.sleep(0.05)

    def sample(self) -> float:
        """Megabytes now."""
        text = pathlib.Path("/proc/self/status").read_text()
        now = int(text.partition("RssAnon:")[2].split()[0]) / 1024
        self.peak_mb = max(self.peak_mb, now)
        return now


def _run(arguments: argparse.Namespace) -> dict:
    jax.devices()  # its start is no part of the loading
    memory = AnonymousMemory()
    start = time.perf_counter()
    source = sources.load("image_folder", str(arguments.folder), image_size=SIDE)
    loaded_s = time.perf_counter() - start
    report = {"loaded_s": loaded_s, "anonymous_mb": memory.sample()}
    if arguments.here == "decode":
        return report | {"peak_anonymous_mb": memory.peak_mb}

    generator = np.random.default_rng(0)
    rows = generator.permutation(len(source.train.labels))
    start, read = time.perf_counter(), rows[: 32 * arguments.batch]
    for first in range(0, len(read), arguments.batch):
        source.train.inputs[read[first : first + arguments.batch]]
    report["read_per_s"] = len(read) / (time.perf_counter() - start)

    some = datasets.select(source.train, rows[: arguments.steps * arguments.batch])
    learner = training.make_learner(
        models.create("resnet_imagenet", CLASSES, depth=18),
        training.example_of(some.inputs),
        normalisation=training.Normalisation(source.mean, source.std),
    )
    optimizer, key = optax.sgd(0.01), jax.random.key(0)
    state = central_training.initial_state(learner, optimizer, key, arguments.batch)
    memory.peak_mb = 0.0
    epochs = central_training.fit(
        *(learner, optimizer, state, some.inputs, some.labels, key, 2),
        arguments.batch,
        streamed=True,
    )
    next(epochs)  # compiles
    start = time.perf_counter()
    last = next(epochs)
    epoch_s = time.perf_counter() - start
    return report | {
        "step_s": epoch_s / arguments.steps,
        "waited": last.waited_s / epoch_s,
        "peak_anonymous_mb": memory.peak_mb,
    }


if __name__ == "__main__":
    main()
