"""Flaws of real clients: noise in recordings and in labels, by groups of clients.

FedAudio: A Federated Learning Benchmark for Audio Tasks (arXiv 2210.15707) studies
both. Everything is a pure function of its arguments; a draw depends on the seed and on
what it is drawn for, not on how many others there are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, Int32, Shaped

from gptfl_jax.errors import UserError


class Noise(NamedTuple):
    """Noise to be added to one recording."""

    snr_db: int | float
    """Mean power of the signal over that of the noise, in decibels."""
    seed: tuple[int, ...]
    """Of the draw, unlike for any other recording."""
    recording: str = ""
    """A file with background sounds; empty is white noise."""


def add_noise(
    waveform: Float32[np.ndarray, " samples"],
    noise: Noise,
    background: Float32[np.ndarray, " other_samples"] | None = None,
) -> Float32[np.ndarray, " samples"]:
    """The waveform with noise of exactly the asked power; a silent one is returned.

    `waveform + noise * sqrt(P_signal / (P_noise * 10^(snr_db / 10)))`, P being the mean
    square over the clip.

    Args:
        background: the noise's recording, at the same rate; it begins at a random
            sample and is repeated when too short. None is white (Gaussian) noise.
    """
    generator = np.random.default_rng(noise.seed)
    if background is None:
        added = generator.standard_normal(len(waveform))
    else:
        begin = generator.integers(len(background))
        added = np.resize(np.roll(background, -begin), len(waveform)).astype(float)
    signal_power = np.mean(np.square(waveform, dtype=np.float64))
    noise_power = np.mean(np.square(added))
    if not signal_power or not noise_power:
        return waveform
    added *= np.sqrt(signal_power / noise_power * 10 ** (-noise.snr_db / 10))
    return (waveform + added).astype(np.float32)


def level_of_client(
    num_clients: int,
    levels: Sequence[int | float],
    shares: Sequence[int | float] = (),
    seed: int = 0,
) -> Float[np.ndarray, " {num_clients}"]:
    """Deals clients at random into groups, one a level; NaN for those in no group.

    The original's experiments put 40, 30 and 30 % of the clients at one level each.

    Args:
        levels: of noise, one a group.
        shares: of the clients in each group, at most 1 together; empty is even groups
            of all clients.

    Raises:
        UserError: shares that do not fit.
    """
    if not shares:
        shares = [1 / len(levels)] * len(levels) if levels else []
    if len(shares) != len(levels) or min(shares, default=0) < 0 or sum(shares) > 1.0001:
        raise UserError(
            f"noise shares {tuple(shares)}: take one number >= 0 for each of the "
            f"levels {tuple(levels)}, at most 1 together"
        )
    ends = np.rint(np.cumsum([0, *shares]) * num_clients).astype(int)
    order = np.random.default_rng([seed, num_clients]).permutation(num_clients)
    result = np.full(num_clients, np.nan)
    for level, begin, end in zip(levels, ends, ends[1:], strict=False):
        result[order[begin:end]] = level
    return result


def confusion_matrix(
    num_classes: int,
    level: int | float,
    sparsity: int | float,
    seed: Sequence[int],
    equal: bool = False,
) -> Float[np.ndarray, "{num_classes} {num_classes}"]:
    """A random sparse matrix: the probability of each label (column) of a class (row).

    A label is right with probability 1 - `level`. The rest goes to some of the other
    classes, in shares drawn evenly from all that are possible (Dirichlet(1)).

    Args:
        level: share of wrong labels, 0..1.
        sparsity: share of the other classes with which a class is never confused; the
            original takes 0.4. At least one is left.
        equal: the others share the wrong labels equally, as in the original.

    Raises:
        UserError: a number outside 0..1, or fewer than two classes.
    """
    if not (0 <= level <= 1 and 0 <= sparsity <= 1 and num_classes > 1):
        raise UserError(
            f"label noise level = {level}, sparsity = {sparsity}: take numbers from 0 "
            "to 1, and two classes at least"
        )
    generator = np.random.default_rng(seed)
    others = num_classes - 1
    confused = max(1, others - round(sparsity * others))
    matrix = np.eye(num_classes) * (1 - level)
    for row in range(num_classes):
        drawn = generator.choice(others, confused, replace=False)
        columns = drawn + (drawn >= row)
        shares = generator.dirichlet(np.ones(confused))
        matrix[row, columns] = level * (1 / confused if equal else shares)
    return matrix


def noisy_labels(
    labels: Int[np.ndarray, " examples"],
    clients: Shaped[np.ndarray, " examples"],
    num_classes: int,
    levels: Sequence[int | float],
    shares: Sequence[int | float] = (),
    sparsity: int | float = 0.4,
    seed: int = 0,
    equal: bool = False,
) -> Int32[np.ndarray, " examples"]:
    """Labels as careless clients give them, each by a `confusion_matrix` of its own.

    `levels` and `shares` make groups of clients as in `level_of_client`; `sparsity` and
    `equal` are those of the matrix.
    """
    names, client = np.unique(clients, return_inverse=True)
    level = level_of_client(len(names), levels, shares, seed)
    given = labels.astype(np.int32)
    for number in np.flatnonzero(~np.isnan(level)).tolist():
        rows = np.flatnonzero(client == number)
        matrix = confusion_matrix(
            num_classes, float(level[number]), sparsity, [seed, number, 0], equal
        )
        draw = np.random.default_rng([seed, number, 1]).random(len(rows))
        ends = np.cumsum(matrix, 1)[labels[rows]]
        # Rounding may leave the last end a little below 1.
        given[rows] = (draw[:, None] >= ends).sum(1).clip(max=num_classes - 1)
    return given
