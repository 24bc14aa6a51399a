"""Pictures and sounds drawn by rule, to train on before any other data.

A class is a rule drawn at random, an example one of the things it draws. Nothing is
read from a file, and no real or generated example is seen.

Pictures are fractals of iterated function systems: Pre-training without Natural Images
(arXiv 2101.08515) tells their systems apart. On the Importance and Applicability of
Pre-Training for Federated Learning (arXiv 2206.11488) starts federations from weights
that were trained on fractals, by another task.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, UInt8

from gptfl_jax.data import audio
from gptfl_jax.data.datasets import Dataset, Source
from gptfl_jax.errors import UserError

# Beside seed, class and example in the generators.
_PICTURES, _SOUNDS = 4, 5
# Points of the chaos game go on so long before they are drawn.
_BURN_IN = 10
_STEPS = 40
_MOST_POINTS = 60_000


class System(NamedTuple):
    """An iterated function system: x <- A_k x + b_k, of random k."""

    matrices: Float64[np.ndarray, "maps 2 2"]
    offsets: Float64[np.ndarray, "maps 2"]
    odds: Float64[np.ndarray, " maps"]
    """Probability of each map."""


def system(random: np.random.Generator) -> System:
    """A system of 2 to 4 maps that contract."""
    count = random.integers(2, 5)
    angles = random.uniform(0, 2 * np.pi, (2, count))
    large = random.uniform(0.45, 0.9, count)
    stretch = np.stack([large, large * random.uniform(0.3, 1.0, count)], -1)
    left, right = _rotations(angles[0]), _rotations(angles[1])
    matrices = left @ (stretch[:, :, None] * right)
    # Each map is drawn in proportion to the area it leaves.
    area = np.maximum(np.abs(np.linalg.det(matrices)), 0.05)
    offsets = random.uniform(-1, 1, (count, 2))
    return System(matrices, offsets, area / area.sum())


def _rotations(angles: Float[np.ndarray, " n"]) -> Float64[np.ndarray, "n 2 2"]:
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def points(
    rule: System, count: int, random: np.random.Generator
) -> Float64[np.ndarray, "count 2"]:
    """Points of a system's attractor, by the chaos game."""
    side = -(-count // _STEPS)
    x = np.zeros((side, 2))
    found = np.empty((_BURN_IN + _STEPS, side, 2))
    drawn = random.choice(len(rule.odds), (len(found), side), p=rule.odds)
    for step, chosen in enumerate(drawn):
        matrices = rule.matrices[chosen]
        x = (matrices * x[:, None, :]).sum(-1) + rule.offsets[chosen]
        found[step] = x
    return found[_BURN_IN:].reshape(-1, 2)[:count]


def fractal(
    rule: System, size: int, channels: int, random: np.random.Generator
) -> UInt8[np.ndarray, "size size channels"]:
    """A picture of a system: bright on dark, turned, scaled and a little bent.

    The more points fall on a pixel, the brighter it is. With three channels it has a
    colour and the ground another.
    """
    bent = rule._replace(
        matrices=rule.matrices * random.uniform(0.92, 1.08, rule.matrices.shape),
        offsets=rule.offsets + random.normal(0, 0.05, rule.offsets.shape),
    )
    # Maps that expand by the bending would leave for infinity.
    norms = np.linalg.norm(bent.matrices, 2, axis=(1, 2))
    shrink = np.minimum(1, 0.95 / norms)
    bent = bent._replace(matrices=bent.matrices * shrink[:, None, None])
    x = points(bent, min(12 * size * size, _MOST_POINTS), random)
    x = x @ _rotations(random.uniform(-0.4, 0.4, 1))[0].T
    low, high = np.quantile(x, [0.01, 0.99], axis=0)
    extent = max((high - low).max(), 1e-6)
    x = (x - (low + high) / 2) / extent * random.uniform(0.65, 1.0)
    x = np.floor((x + 0.5 + random.uniform(-0.1, 0.1, 2)) * size).astype(int)
    inside = x[((x >= 0) & (x < size)).all(1)]
    hits = np.bincount(inside[:, 1] * size + inside[:, 0], minlength=size * size)
    shade = np.log1p(hits.reshape(size, size, 1))
    shade = shade / max(shade.max(), 1e-6)
    if channels == 1:
        return np.rint(255 * shade).astype(np.uint8)
    colour, ground = random.uniform(0.5, 1, channels), random.uniform(0, 0.5, channels)
    mixed = shade * colour + (1 - shade) * ground
    return np.rint(255 * mixed).astype(np.uint8)


class Call(NamedTuple):
    """How a class of sounds is made: a voiced tone with formants, and noise."""

    pitch_hz: float
    glide: float
    """Octaves that the pitch goes up or down."""
    formants_hz: Float64[np.ndarray, " formants"]
    pulses: float
    """How often the loudness swells."""
    noise: float
    """Share of noise, at the beginning or (negative) the end."""


def call(random: np.random.Generator) -> Call:
    """A way to sound, at random."""
    return Call(
        float(2 ** random.uniform(np.log2(90), np.log2(320))),
        float(random.uniform(-1, 1)),
        np.sort(2 ** random.uniform(np.log2(250), np.log2(3400), 3)),
        float(random.integers(1, 5)),
        float(random.uniform(-0.6, 0.6)),
    )


def sound(
    rule: Call, longest_s: float, rate_hz: int, random: np.random.Generator
) -> Float64[np.ndarray, " samples"]:
    """A sound of a class: other in pitch, formants, length and background."""
    count = max(1, round(longest_s * rate_hz * random.uniform(0.4, 1.0)))
    t = np.arange(count) / count
    pitch = rule.pitch_hz * 2 ** (random.normal(0, 0.2) + rule.glide * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    formants = rule.formants_hz * random.uniform(0.93, 1.07, len(rule.formants_hz))
    voiced, moments = np.zeros(count), np.linspace(0, count - 1, 32)
    for harmonic in range(1, 41):
        frequency = np.interp(moments, np.arange(count), harmonic * pitch)
        if frequency.min() > rate_hz / 2:
            break
        near = np.exp(-(((frequency[:, None] - formants) / 180) ** 2) / 2).sum(1)
        gain = (near + 0.02) / harmonic**0.3 * (frequency < rate_hz / 2)
        gain = np.interp(np.arange(count), moments, gain)
        voiced += gain * np.sin(harmonic * phase)
    voiced /= max(np.abs(voiced).max(), 1e-6)
    swell = 0.25 + 0.75 * np.sin(np.pi * rule.pulses * t) ** 2
    hiss = random.normal(0, 0.3, count)
    place = t < rule.noise if rule.noise > 0 else t > 1 + rule.noise
    clean = np.where(place, hiss, voiced) * swell
    return clean + random.normal(0, 10 ** random.uniform(-2.5, -1.2), count)


Advance = Callable[[int], None]


def _nothing(count: int) -> None:
    pass


def _random(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)


def pictures(
    num_classes: int,
    per_class: int,
    size: int,
    channels: int,
    seed: int,
    first: int = 0,
    advance: Advance = _nothing,
) -> Dataset:
    """Fractals: `per_class` pictures of each of `num_classes` systems.

    Args:
        num_classes, per_class: how many.
        size: side in pixels.
        channels: 1 or 3.
        seed: of all draws. A picture depends on it, on its class and number only.
        first: number of the first picture of a class.
        advance: called with the number of pictures that are done.
    """
    made = np.empty((num_classes, per_class, size, size, channels), np.uint8)
    for label in range(num_classes):
        rule = system(_random(seed, _PICTURES, label))
        for index in range(per_class):
            random = _random(seed, _PICTURES, label, 1 + first + index)
            made[label, index] = fractal(rule, size, channels, random)
        advance(per_class)
    return _dataset(made.reshape(-1, size, size, channels), num_classes, per_class)


def sounds(
    num_classes: int,
    per_class: int,
    settings: audio.FeatureSettings,
    frames: int,
    seed: int,
    first: int = 0,
    advance: Advance = _nothing,
) -> Dataset:
    """Calls: features of `per_class` sounds of each of `num_classes` kinds.

    Args:
        num_classes, per_class, seed, first, advance: as `pictures` takes them.
        settings: of the features.
        frames: of the result; a sound takes 0.4 to 1 of them.
    """
    longest_s = max(frames - 1, 1) * settings.hop / settings.sample_rate_hz
    made = []
    for label in range(num_classes):
        rule = call(_random(seed, _SOUNDS, label))
        for index in range(per_class):
            random = _random(seed, _SOUNDS, label, 1 + first + index)
            wave = sound(rule, longest_s, settings.sample_rate_hz, random)
            made.append(audio.compute(wave, settings)[:frames])
        advance(per_class)
    features, lengths = audio.pad(made, made[0].shape[1])
    padding = frames - features.shape[1]
    features = np.pad(features, ((0, 0), (0, padding), (0, 0)))
    return _dataset((features, lengths), num_classes, per_class)


def _dataset(inputs, num_classes: int, per_class: int) -> Dataset:
    labels = np.repeat(np.arange(num_classes, dtype=np.int32), per_class)
    return Dataset(inputs, labels, tuple(f"rule {i}" for i in range(num_classes)))


class Parts(NamedTuple):
    """Procedural examples in the form of a source's."""

    train: Dataset
    test: Dataset
    """An eighth as many, at least one of each class."""


def like(
    source: Source,
    num_classes: int,
    per_class: int,
    seed: int,
    advance: Advance = _nothing,
) -> Parts:
    """Procedural examples of the shape of a source's, and of classes of their own.

    Args:
        source: whose pictures are square, or whose recordings become features.
        num_classes, per_class: of the training set.
        seed, advance: as `pictures` takes them.

    Raises:
        UserError: the examples of the source are neither.
    """

    def make(count: int, first: int) -> Dataset:
        if source.sounds is not None:
            frames = source.train.inputs[0].shape[1]
            form = source.sounds.settings, frames
            return sounds(num_classes, count, *form, seed, first, advance)
        shape = getattr(source.train.inputs, "shape", ())
        if len(shape) != 4 or shape[1] != shape[2]:
            raise UserError(
                "procedural examples are square pictures or sounds, and the data's "
                "are neither: for pictures set config.data.image_size"
            )
        return pictures(num_classes, count, shape[1], shape[3], seed, first, advance)

    return Parts(make(per_class, 0), make(tests_of(per_class), per_class))


def tests_of(per_class: int) -> int:
    """Test examples of each class, for so many in the training set."""
    return max(1, per_class // 8)
