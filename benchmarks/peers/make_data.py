"""The files of w3, w4 and w5, which the peers' own generator does not make.

  python -m benchmarks.peers.make_data DATA

DATA holds the `w2.npz` of that generator: w3 has its examples, w5 its clients, classes
and rounds with pictures of 64x64 pixels, w4 sounds as log-mel bands. As there, examples
are random numbers about a mean for each class: for timing, not for accuracy.
"""

import argparse
import pathlib

import numpy as np


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=pathlib.Path, metavar="DATA")
    folder = parser.parse_args().data
    with np.load(folder / "w2.npz") as file:
        pictures = dict(file)
    np.savez(folder / "w3.npz", **pictures)
    np.savez(folder / "w4.npz", **sounds())
    rng = np.random.default_rng(5)
    large = draw(rng, pictures["y"], int(pictures["num_classes"]), (64, 64, 3))
    np.savez(folder / "w5.npz", **{**pictures, "x": large})


def sounds(rounds: int = 64) -> dict[str, np.ndarray]:
    """50 clients of 20 to 60 clips of 160 frames and 128 bands, 10 a round."""
    rng = np.random.default_rng(4)
    clients, classes = 50, 35
    offsets = np.append(0, rng.integers(20, 61, clients).cumsum())
    labels = rng.integers(0, classes, offsets[-1]).astype(np.int32)
    cohorts = [rng.choice(clients, 10, replace=False) for _ in range(rounds)]
    return dict(
        x=draw(rng, labels, classes, (160, 128)),
        y=labels,
        offsets=offsets,
        schedule=np.stack(cohorts),
        num_classes=np.array(classes),
        batch=np.array(16),
        lr=np.array(0.01),
    )


def draw(
    rng: np.random.Generator, labels: np.ndarray, classes: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Unit noise about means that are constant over tiles of 4 x 4."""
    rows, columns, *channels = shape
    means = rng.standard_normal((classes, rows // 4, columns // 4, *channels))
    means = means.astype(np.float32).repeat(4, 1).repeat(4, 2)
    noise = rng.standard_normal((len(labels), *shape), np.float32)
    return noise + 0.5 * means[labels]


if __name__ == "__main__":
    main()
