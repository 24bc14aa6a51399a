"""Words spoken by free speech synthesizers, in many voices.

The training data of the small voice shipped in `gptfl_jax/assets/voices`. No recording
is read: clips come from espeak-ng and flite (programs; Debian packages of these names)
and from hibari (extra `voices`). Only `python -m train.generator` needs them.

A synthesizer's voice becomes several by its rate of speech, its pitch, and a shift of
the whole spectrum, as of a shorter or longer vocal tract.
"""

import concurrent.futures
import functools
import io
import os
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float32
from tqdm.auto import tqdm

from gptfl_jax.data import audio
from gptfl_jax.errors import UserError

ENGINES = ("espeak-ng", "flite", "hibari")

# English accents of espeak-ng, and its variants of the speaker that sound like people.
_ACCENTS = (
    *("en-us", "en-gb", "en-us-nyc", "en-gb-scotland", "en-029"),
    *("en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"),
)
_VARIANTS = (
    *("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5"),
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2"),
    *("Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike"),
    *("Nguyen", "adam", "anika", "antonio", "belinda", "benjamin", "boris", "caleb"),
    *("david", "ed", "edward", "edward2", "grandma", "grandpa", "gustave", "iven"),
    *("iven2", "iven3", "iven4", "john", "klatt", "klatt2", "klatt3", "klatt4"),
    *("linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul"),
    *("pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph2"),
    *("steph3", "travis", "victor", "zac"),
)
_FLITE_VOICES = ("kal", "kal16", "awb", "rms", "slt")
# The voice inside hibari's package; its others are downloads.
_HIBARI_VOICE = "heart"

# espeak-ng's default rate of speech, in words a minute.
_ESPEAK_RATE = 175
# Clips are scaled to this root mean square.
_LOUDNESS = 0.08
_PEAK = 0.95
# Ends of a clip this far below its loudest part are cut off.
_TRIM_DB = 40.0


class Voice(NamedTuple):
    """A way of speaking: always the same sound for the same word."""

    engine: str
    model: str
    """The engine's name of the voice."""
    speed: float
    """Rate of speech; 1 is the engine's own."""
    pitch: int = 50
    """Of espeak-ng, 0 to 99."""
    shift: float = 1.0
    """Factor on all frequencies, at the same rate of speech."""

    @property
    def name(self) -> str:
        """Its name as part of a file's name."""
        model = self.model.replace("+", "-")
        numbers = f"{self.speed:g}-{self.pitch}-{self.shift:g}".replace(".", "_")
        return f"{self.engine}-{model}-{numbers}"


def voices() -> tuple[Voice, ...]:
    """All voices: 222 of espeak-ng, 60 of flite, 24 of hibari."""
    espeak = []
    for i, variant in enumerate(_VARIANTS):
        for j, step in enumerate((0, 3, 5)):
            accent = _ACCENTS[(i + step) % len(_ACCENTS)]
            number = 3 * i + j
            espeak.append(
                Voice(
                    "espeak-ng",
                    f"{accent}+{variant}",
                    speed=(0.75, 0.85, 0.95, 1.05)[number % 4],
                    pitch=(30, 40, 50, 60, 70)[number % 5],
                    shift=(0.9, 1.0, 1.1)[(number // 2) % 3],
                )
            )
    flite = [
        Voice("flite", model, speed, shift=shift)
        for model in _FLITE_VOICES
        for speed in (0.85, 1.0, 1.2)
        for shift in (0.88, 0.96, 1.04, 1.12)
    ]
    hibari = [
        Voice("hibari", _HIBARI_VOICE, speed, shift=shift)
        for speed in (0.8, 1.0, 1.2, 1.4)
        for shift in (0.7, 0.78, 0.86, 0.94, 1.02, 1.1)
    ]
    return (*espeak, *flite, *hibari)


def speak(voice: Voice, word: str) -> Float32[np.ndarray, " samples"]:
    """A word at 16 kHz, without the silence at its ends, at a fixed loudness.

    Raises:
        UserError: the engine is not installed, or does not speak.
    """
    make = {"espeak-ng": _espeak, "flite": _flite, "hibari": _hibari}[voice.engine]
    wave, rate = make(voice, word)
    # Played faster, all frequencies rise: `make` has spoken slower by as much.
    wave = audio.resample(wave, round(rate * voice.shift), audio.SAMPLE_RATE_HZ)
    wave = audio.trim_silence(wave, audio.SAMPLE_RATE_HZ, _TRIM_DB)
    power = np.sqrt(np.mean(np.square(wave)))
    if not power > 0:
        raise UserError(
            f"{voice.engine} made no sound of {word!r} in the voice {voice.model}: "
            "try it on the command line"
        )
    wave = wave * min(_LOUDNESS / power, _PEAK / np.abs(wave).max())
    return wave.astype(np.float32)


def speak_all(
    words: Sequence[str], spoken_by: Sequence[Voice]
) -> list[list[Float32[np.ndarray, " samples"]]]:
    """Every word of every voice: a list for each voice, in the order of the words.

    Raises:
        UserError: as `speak`.
    """
    clips = speak_each((voice, word) for voice in spoken_by for word in words)
    count = len(words)
    return [clips[i * count : (i + 1) * count] for i in range(len(spoken_by))]


def speak_each(
    tasks: Iterable[tuple[Voice, str]],
) -> list[Float32[np.ndarray, " samples"]]:
    """The clip of each voice and word.

    Raises:
        UserError: as `speak`.
    """
    tasks = list(tasks)
    check_engines({voice.engine for voice, _ in tasks})
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(
            tqdm(
                pool.map(lambda task: speak(*task), tasks),
                total=len(tasks),
                desc="synthesizers",
                mininterval=5,
                unit="clip",
            )
        )


def check_engines(engines: set[str]) -> None:
    """Raises a UserError that says how to install what is missing of `engines`."""
    for program in ("espeak-ng", "flite"):
        if program in engines and not shutil.which(program):
            raise UserError(
                f"the program {program} is not installed: apt install {program}"
            )
    if "hibari" in engines:
        _load_hibari()


def _espeak(voice: Voice, word: str) -> tuple[np.ndarray, int]:
    rate = round(_ESPEAK_RATE * voice.speed / voice.shift)
    options = ["-v", voice.model, "-s", str(rate), "-p", str(voice.pitch), "--stdout"]
    output = _run(["espeak-ng", *options, word])
    # Written to a pipe, the header does not know the length.
    header = output.find(b"data")
    with soundfile.SoundFile(io.BytesIO(output[:header] + b"data\0\0\0\0")) as file:
        rate = file.samplerate
    content = output[header + 8 :]
    samples = np.frombuffer(content[: len(content) // 2 * 2], "<i2")
    return samples.astype(np.float32) / 2**15, rate


def _flite(voice: Voice, word: str) -> tuple[np.ndarray, int]:
    stretch = voice.shift / voice.speed
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "word.wav"
        options = ["-voice", voice.model, "--setf", f"duration_stretch={stretch:.4f}"]
        _run(["flite", *options, "-t", word, "-o", str(path)])
        return soundfile.read(path, dtype="float32")


def _hibari(voice: Voice, word: str) -> tuple[np.ndarray, int]:
    engine = _load_hibari()
    wave = engine(f"{word}.", speed=voice.speed / voice.shift, seed=0)
    return np.asarray(wave, np.float32), engine.sample_rate


@functools.cache
def _load_hibari() -> Any:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise UserError(
            f"hibari is not installed ({error}): pip install 'gptfl-jax[voices]'"
        ) from error
    return Hibari(voice=_HIBARI_VOICE)


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(
            f"{' '.join(command)} failed: {reason[-1] if reason else 'no message'}"
        )
    return done.stdout
