r"""Says what a trained classifier sees in pictures, or hears in recordings.

    python -m federated.predict --workdir=runs/digits --run=fedavg-gptfl-s0 \
        seven.png photos/

Each file is cropped, resized, or turned into features as the examples were that the
classifier was trained on; folders are searched for pictures or recordings. The most
probable classes of each stand in a line. With --json it is a line of JSON:

    {"file": "seven.png", "top": [{"class": "7", "probability": 0.98}, ...]}

A file that cannot be read is named and left out, and the exit code is 1. `--workdir`
may be a folder of `federated.export`.
"""

import contextlib
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, PyTree

from federated import trained
from gptfl_jax import compilation_cache, prefetch
from gptfl_jax.classifier import Classifier
from gptfl_jax.data import audio, images
from gptfl_jax.errors import UserError
from gptfl_jax.launch import launch_function, printable
from gptfl_jax.progress import Progress

# A longer path is shown whole, and its line is out of step.
_WIDEST_PATH, _WIDEST_CLASS = 60, 24


class Prediction(NamedTuple):
    """What was said of a file.

    Attributes:
        path: the file.
        probabilities: of every class; None: the file cannot be read.
        error: why it cannot.
    """

    path: pathlib.Path
    probabilities: Float32[np.ndarray, " classes"] | None
    error: str = ""


def predictions(
    classifier: Classifier, paths: Sequence[pathlib.Path], batch_size: int = 64
) -> Iterator[Prediction]:
    """Predicts files in batches: the next is read while one is computed.

    Args:
        classifier: what was trained.
        paths: of pictures, or of recordings.
        batch_size: files at once; no more than two batches are in memory.

    Raises:
        UserError: the classifier takes neither pictures nor sounds.
    """
    size = max(1, min(batch_size, len(paths)))
    parts = [paths[start : start + size] for start in range(0, len(paths), size)]

    def read(part):
        broken: dict[int, str] = {}
        inputs = classifier.read(part, broken)
        return inputs, broken

    with contextlib.closing(prefetch.ahead(read, parts, depth=1)) as coming:
        for part, future in zip(parts, coming, strict=True):
            inputs, broken = future.result()
            filled = _filled_up(inputs, size, classifier.example)
            rows = iter(classifier.probabilities(filled, size))
            for number, path in enumerate(part):
                if number in broken:
                    yield Prediction(path, None, broken[number])
                else:
                    yield Prediction(path, next(rows))


def _filled_up(inputs: PyTree, size: int, example: PyTree) -> PyTree:
    """Inputs with zeros behind, so that few shapes are compiled.

    Examples are filled up to `size`, the frames of sounds to a multiple of those that
    the classifier was trained on; the model leaves such frames out.
    """

    def fill(leaf, like):
        widths = [(0, size - len(leaf))]
        for axis, length in enumerate(like.shape, start=1):
            widths.append((0, -leaf.shape[axis] % length))
        return np.pad(leaf, widths)

    return jax.tree.map(fill, inputs, example)


def find_files(
    paths: Sequence[str], endings: set[str]
) -> tuple[list[pathlib.Path], list[str]]:
    """The files that paths stand for, and the folders that hold none.

    Args:
        paths: files, taken whatever their names; and folders, of which those files are
            taken that end so, also of folders within. Hidden ones are left out.
        endings: as ".png".
    """
    files, empty = [], []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        before = len(files)
        for root, folders, names in os.walk(path):
            folders[:] = sorted(each for each in folders if each[0] != ".")
            files += [
                pathlib.Path(root, name)
                for name in sorted(names)
                if name[0] != "." and pathlib.Path(name).suffix.lower() in endings
            ]
        if len(files) == before:
            empty.append(f"{path}: holds no file that ends in one of {sorted(endings)}")
    return files, empty


def run(
    *files: str,
    workdir: str,
    run: str = "",
    step: str = "last",
    model: str = "",
    top: int = 3,
    json: bool = False,
    batch_size: int = 64,
) -> None:
    """Prints the most probable classes of files.

    Args:
        files: pictures or recordings, and folders of such.
        workdir: folder of all stages' files, or a folder of federated.export.
        run: name of the run: pretrain, or that of a federation; empty: the only one.
        step: which checkpoint: last, best, or the number of its epoch or round.
        model: the file or module of a model of your own, which is run.
        top: how many classes of each file.
        json: lines of JSON in place of a table.
        batch_size: files at once.

    Raises:
        UserError: there is no such run or checkpoint, or no file is named.
        SystemExit: with code 1, some files could not be read.
    """
    if not files:
        raise UserError("name the pictures or recordings, or a folder of them")
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"--{name}={value}: takes a whole number from 1")
    compilation_cache.start()
    classifier = trained.load(workdir, run, step, model).classifier
    endings = images.ENDINGS if classifier.sounds is None else audio.ENDINGS
    paths, errors = find_files(files, endings)
    for error in errors:
        _complain(error)
    write = functools.partial(_write_json if json else _write_row, classifier, top)
    if not json and paths:
        _write_header(classifier, top, paths)
    # On a terminal the lines themselves show how far it is.
    counted = (
        contextlib.nullcontext()
        if sys.stdout.isatty()
        else Progress(len(paths), "files", leave=False)
    )
    failed = len(errors)
    with counted as bar:
        for each in predictions(classifier, paths, batch_size):
            if each.probabilities is None:
                failed += 1
                _complain(f"{each.path}: {each.error}")
            else:
                write(paths, each)
            if bar is not None:
                bar.update()
    if failed:
        _complain(f"{failed} of {len(paths) + len(errors)} could not be read")
        raise SystemExit(1)


def _complain(text: str) -> None:
    sys.stdout.flush()
    print(printable(f"federated.predict: {text}"), file=sys.stderr, flush=True)


def _ranked(classifier: Classifier, top: int, each: Prediction):
    """(class, probability) of the `top` most probable, which comes first."""
    order = np.argsort(-each.probabilities, kind="stable")[:top]
    return [(classifier.class_names[i], float(each.probabilities[i])) for i in order]


def _write_json(classifier, top, paths, each) -> None:
    ranked = _ranked(classifier, top, each)
    classes = [{"class": name, "probability": share} for name, share in ranked]
    print(json.dumps({"file": str(each.path), "top": classes}), flush=True)


def _widths(classifier, paths) -> tuple[int, int]:
    path = max(len(str(path)) for path in paths)
    name = max(map(len, classifier.class_names))
    return min(max(path, 4), _WIDEST_PATH), min(name, _WIDEST_CLASS)


def _write_header(classifier, top, paths) -> None:
    path, name = _widths(classifier, paths)
    count = min(top, len(classifier.class_names))
    cells = [f"{number}. class".ljust(name + 8) for number in range(1, count + 1)]
    line = "  ".join(["file".ljust(path), *cells]).rstrip()
    print(line, "-" * len(line), sep="\n", flush=True)


def _write_row(classifier, top, paths, each) -> None:
    path, name = _widths(classifier, paths)
    cells = [
        f"{shown.ljust(name)} {100 * share:5.1f} %"
        for shown, share in _ranked(classifier, top, each)
    ]
    print("  ".join([str(each.path).ljust(path), *cells]), flush=True)


def main() -> None:
    """Entry point of `python -m federated.predict` and `gptfl-predict`."""
    launch_function(run)


if __name__ == "__main__":
    main()
