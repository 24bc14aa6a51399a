"""Strokes of drums and cymbals made by rule, no two alike.

Each is a sum of partials that die away and of filtered noise, as the instruments'
physics suggests: a membrane's modes for drums, a crowd of inharmonic ones for cymbals
(Fletcher and Rossing, The Physics of Musical Instruments, chapters 18 and 20). Then
come a saturating amplifier, an equaliser, a room and a little noise.
"""

import numpy as np
from jaxtyping import Float

from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ

Wave = Float[np.ndarray, " samples"]

LENGTH = 16_384
"""Samples of a stroke, 1.024 s."""

KINDS = ("acoustic", "electronic")

# Frequencies of a membrane's modes over that of the first.
_MEMBRANE = np.asarray([1, 1.594, 2.136, 2.296, 2.653, 2.918, 3.156, 3.501])
_TIME = np.arange(LENGTH) / SAMPLE_RATE_HZ


def stroke(name: str, kind: str, rng: np.random.Generator) -> Wave:
    """A stroke with its largest value at 0.9.

    Args:
        name: of the label set `drumkits`.
        kind: of `KINDS`.
        rng: what it is drawn from.
    """
    make = {
        "kick": _kick,
        "snare": _snare,
        "tom": _tom,
        "hi_hat": _hi_hat,
        "crash": _crash,
        "ride": _ride,
    }[name]
    return finish(make(kind == "electronic", rng), rng)


def finish(wave: Wave, rng: np.random.Generator) -> Wave:
    """What an amplifier, an equaliser and a room make of a sound of at most 1 s."""
    wave = wave[:LENGTH] / np.abs(wave).max()
    wave = np.pad(wave, (0, LENGTH - len(wave)))
    if rng.random() < 0.5:
        drive = _between(rng, 0.5, 4)
        wave = np.tanh(drive * wave)
    wave = _equalised(wave, rng)
    if rng.random() < 0.5:
        wave = _in_a_room(wave, rng)
    start = int(_between(rng, 1, 0.008 * SAMPLE_RATE_HZ))
    wave = np.pad(wave, (start, 0))[:LENGTH]
    wave /= np.abs(wave).max()
    # What microphones and their amplifiers make.
    hum = _noise(rng, 20, _between(rng, 300, 8000))
    wave += 10 ** (rng.uniform(-90, -50) / 20) * hum
    return 0.9 * wave / np.abs(wave).max()


def _kick(electronic, rng):
    pitch = _between(rng, 38, 70) if electronic else _between(rng, 45, 95)
    bend = _between(rng, 0.5, 6) if electronic else _between(rng, 0.2, 2)
    wave = _glide(pitch, bend, _between(rng, 0.004, 0.06))
    wave *= _decay(_between(rng, 0.06, 0.5) if electronic else _between(rng, 0.04, 0.2))
    if not electronic:
        for ratio in _MEMBRANE[1:4]:
            level = rng.uniform(0, 0.3)
            wave += level * _tone(ratio * pitch, rng) * _decay(rng.uniform(0.02, 0.08))
    click = _noise(rng, _between(rng, 300, 2500), _between(rng, 3000, 8000))
    wave += rng.uniform(0, 0.6) * click * _decay(_between(rng, 0.002, 0.012))
    rumble = _noise(rng, 40, _between(rng, 300, 2000))
    return wave + rng.uniform(0, 0.2) * rumble * _decay(_between(rng, 0.02, 0.1))


def _snare(electronic, rng):
    pitch = _between(rng, 140, 280)
    wave = _glide(pitch, rng.uniform(0, 0.6), _between(rng, 0.005, 0.03))
    wave *= _decay(_between(rng, 0.02, 0.15))
    for ratio in (_between(rng, 1.5, 1.9),) if electronic else _MEMBRANE[1:5]:
        level = rng.uniform(0.1, 0.7)
        wave += level * _tone(ratio * pitch, rng) * _decay(_between(rng, 0.02, 0.1))
    wires = _noise(rng, _between(rng, 300, 2500), _between(rng, 1500, 8000))
    rattle = _decay(_between(rng, 0.04, 0.25))
    if not electronic:
        rattle += rng.uniform(0, 0.3) * _decay(_between(rng, 0.2, 0.5))
    wave += _between(rng, 0.1, 2) * wires * rattle
    hit = _noise(rng, 800, 8000) * _decay(_between(rng, 0.002, 0.01))
    return wave + rng.uniform(0, 1.0) * hit


def _tom(electronic, rng):
    pitch = _between(rng, 65, 270)
    bend = rng.uniform(0.1, 1.2) if electronic else rng.uniform(0, 0.35)
    wave = _glide(pitch, bend, _between(rng, 0.02, 0.2))
    life = _between(rng, 0.08, 0.5)
    wave *= _decay(life)
    if not electronic:
        for ratio in _MEMBRANE[1:]:
            level = rng.uniform(0, 0.5) / ratio
            shorter = life * _between(rng, 0.15, 0.7)
            wave += level * _tone(ratio * pitch, rng) * _decay(shorter)
    hit = _noise(rng, _between(rng, 200, 1500), _between(rng, 2500, 8000))
    wave += rng.uniform(0, 0.5) * hit * _decay(_between(rng, 0.003, 0.015))
    if rng.random() < 0.3:  # the wires of a snare drum beside it
        wires = _noise(rng, 1500, 7000)
        wave += rng.uniform(0, 0.08) * wires * _decay(_between(rng, 0.1, 0.5))
    return wave


def _hi_hat(electronic, rng):
    metal = _metal(electronic, rng, _between(rng, 2500, 5500), 8000)
    hiss = _noise(rng, _between(rng, 2500, 6000), 8000)
    wave = metal + _between(rng, 0.3, 3) * hiss
    manner = rng.choice(["closed", "open", "pedal"], p=[0.5, 0.3, 0.2])
    if manner == "closed":
        wave *= _decay(_between(rng, 0.012, 0.09))
    elif manner == "open":
        life = _between(rng, 0.12, 0.7)
        wave *= _decay(life) + rng.uniform(0, 0.5) * _decay(0.2 * life)
    else:
        rise = np.minimum(1, _TIME / _between(rng, 0.002, 0.015))
        wave *= rise * _decay(_between(rng, 0.02, 0.1))
    body = _noise(rng, _between(rng, 150, 600), _between(rng, 1500, 6000))
    wave += _between(rng, 0.03, 0.5) * body * _decay(_between(rng, 0.01, 0.3))
    clank = _tone(_between(rng, 350, 1200), rng) * _decay(_between(rng, 0.01, 0.05))
    return wave + rng.uniform(0, 0.25) * clank


def _crash(electronic, rng):
    # Low modes last; the highest, fed by them, swell and die first.
    wave = np.zeros(LENGTH)
    edges = np.geomspace(_between(rng, 200, 500), 8000, 7)
    life = _between(rng, 0.3, 1.8)
    slope = rng.uniform(0.1, 0.5)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        band = _metal(electronic, rng, low, high) if rng.random() < 0.5 else 0
        band = band + _between(rng, 0.3, 1.5) * _noise(rng, low, high)
        rise = 1 - np.exp(-_TIME / _between(rng, 0.002, 0.02))
        decay = _decay(life * (edges[1] / high) ** slope * _between(rng, 0.7, 1.4))
        wave += 10 ** (rng.normal(0, 7) / 20) * band * rise * decay
    hit = _noise(rng, 500, 8000) * _decay(_between(rng, 0.005, 0.03))
    wave += rng.uniform(0.2, 1.2) * wave.std() * 3 * hit
    if electronic:
        wave *= _decay(_between(rng, 0.3, 1.0))
    return wave


def _ride(electronic, rng):
    # A clear ping of the stick, some modes that ring on, and a wash far below.
    wash = _noise(rng, _between(rng, 1500, 4000), 8000) * _decay(_between(rng, 0.4, 2))
    wave = _between(rng, 0.03, 0.25) * wash
    hum = _noise(rng, _between(rng, 100, 250), _between(rng, 500, 1500))
    wave += _between(rng, 0.02, 0.3) * hum * _decay(_between(rng, 0.1, 0.8))
    for _ in range(rng.integers(5, 16)):
        pitch = _between(rng, 350, 7000)
        level = rng.uniform(0.05, 0.4) * (1000 / pitch) ** rng.uniform(-0.2, 0.4)
        wave += level * _tone(pitch, rng) * _decay(_between(rng, 0.15, 2))
    shimmer = _metal(electronic, rng, _between(rng, 2000, 4000), 8000)
    wave += _between(rng, 0.05, 0.4) * shimmer * _decay(_between(rng, 0.3, 1.5))
    ping = _noise(rng, _between(rng, 1500, 4000), 8000)
    return wave + rng.uniform(0.5, 2) * ping * _decay(_between(rng, 0.003, 0.02))


def _between(rng, low, high):
    """Uniform in the logarithm."""
    return np.exp(rng.uniform(np.log(low), np.log(high)))


def _decay(life_s):
    return np.exp(-_TIME / life_s)


def _glide(pitch_hz, bend, life_s):
    """A sine that falls from (1 + bend) times the pitch."""
    frequency = pitch_hz * (1 + bend * np.exp(-_TIME / life_s))
    return np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE_HZ)


def _tone(pitch_hz, rng):
    phase = rng.uniform(0, 2 * np.pi)
    if pitch_hz >= SAMPLE_RATE_HZ / 2:
        return np.zeros(LENGTH)
    return np.sin(2 * np.pi * pitch_hz * _TIME + phase)


def _band(wave, low_hz, high_hz):
    """The part of a wave between two frequencies, with soft edges."""
    spectrum = np.fft.rfft(wave)
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE_HZ)
    low = 1 / (1 + (low_hz / np.maximum(frequency, 1)) ** 6)
    high = 1 if high_hz >= 8000 else 1 / (1 + (frequency / high_hz) ** 6)
    return np.fft.irfft(spectrum * low * high, len(wave))


def _noise(rng, low_hz, high_hz):
    """Noise of deviation 0.3 between two frequencies."""
    wave = _band(rng.standard_normal(LENGTH), low_hz, high_hz)
    return 0.3 * wave / wave.std()


def _metal(electronic, rng, low_hz, high_hz):
    """Inharmonic partials of deviation 0.3: six squares in drum machines, else many."""
    if electronic:
        scale = _between(rng, 0.7, 2)
        pitches = scale * np.asarray([205.3, 304.4, 369.6, 522.7, 540.0, 800.0])
        wave = sum(np.sign(_tone(pitch, rng)) for pitch in pitches)
    else:
        spectrum = np.zeros(LENGTH // 2 + 1, complex)
        last = min(high_hz, 7900) * LENGTH / SAMPLE_RATE_HZ
        places = rng.uniform(
            low_hz * LENGTH / SAMPLE_RATE_HZ, last, rng.integers(20, 80)
        )
        for place in places:
            phase = np.exp(2j * np.pi * rng.random())
            spectrum[int(place)] += rng.exponential() * phase
        wave = np.fft.irfft(spectrum, LENGTH)
    wave = _band(wave, low_hz, high_hz)
    return 0.3 * wave / max(wave.std(), 1e-9)


def _equalised(wave, rng):
    """A smooth gain over the frequency, of a few decibels up and down."""
    frequency = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE_HZ)
    places = np.log([20, 100, 400, 1500, 4000, 8000])
    decibels = rng.normal(0, 5, len(places)).cumsum() * rng.random()
    gain = np.interp(np.log(np.maximum(frequency, 20)), places, decibels)
    return np.fft.irfft(np.fft.rfft(wave) * 10 ** (gain / 20), len(wave))


def _in_a_room(wave, rng):
    """With echoes that die away."""
    echo = _noise(rng, 100, _between(rng, 2000, 8000))
    echo *= _decay(_between(rng, 0.02, 0.25))
    echo *= _between(rng, 0.02, 0.4) / np.sqrt((echo**2).sum())
    echo[0] += 1
    size = 2 * LENGTH
    return np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(echo, size), size)[
        :LENGTH
    ]
