"""Speech Commands."""

import pathlib
from typing import Literal

import numpy as np

from gptfl_jax import labels, user_files
from gptfl_jax.data import audio, downloads, tables
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import Example, Options, to_source
from gptfl_jax.errors import UserError
from gptfl_jax.rules import NonNegative, Seed

SILENCE = "silence"

# The checksum is the one that torchaudio and TensorFlow Datasets publish.
_RELEASE = downloads.Release(
    "https://storage.googleapis.com/download.tensorflow.org/data/"
    "speech_commands_v0.02.tar.gz",
    "sha256",
    "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
)


def speech_commands(
    folder: str,
    *,
    test_list: Literal["testing", "validation"] = "testing",
    silence: NonNegative = 0.0,
    seed: Seed = 0,
    download: bool = False,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """Speech Commands v0.02 (arXiv 1804.03209): 35 words, and silence as the 36th.

    Clients are the speakers, the 8 hexadecimal digits in a file's name. The training
    set is what neither list names: 84,843 words of 2,112 speakers.

    Args:
        folder: holds `speech_commands_v0.02/`, or is that folder: `<word>/*.wav`,
            `validation_list.txt`, `testing_list.txt`, `_background_noise_/`.
        test_list: the test set, `testing` or `validation`.
        silence: examples of silence as a share of the other examples of each part. They
            are seconds of `_background_noise_`, the training set's from the first 80 %
            of each recording and the test set's from the rest, dealt to random
            speakers. The original has the class but no example of it.
        seed: of the silence.
        download: gets the data set (2.4 GB, CC BY 4.0) where the folder lacks it.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    root = downloads.locate(
        folder,
        ("speech_commands_v0.02", "."),
        "testing_list.txt",
        "Speech Commands v0.02",
        f"{_RELEASE.url} (or set config.data.options.download=True)",
        _RELEASE if download else None,
        "speech_commands_v0.02",
    )
    lists = {
        name: set(
            user_files.read_text(root / f"{name}_list.txt", tables.MOST_BYTES).split()
        )
        for name in ("testing", "validation")
    }
    left_out = lists["validation" if test_list == "testing" else "testing"]
    words = labels.label_set("speech_commands").classes
    examples = []
    for word in words:
        for path in sorted((root / word).glob("*.wav")):
            name = f"{word}/{path.name}"
            if name not in left_out:
                speaker = path.name.split("_")[0]
                test = name in lists[test_list]
                examples.append(Example(audio.Clip(path), word, speaker, test))
    examples += _silence(root / "_background_noise_", examples, silence, seed)
    return to_source(examples, (*words, SILENCE), features, flaws, cache)


def _silence(
    folder: pathlib.Path, examples: list[Example], share: int | float, seed: int
) -> list[Example]:
    if not share:
        return []
    recordings = sorted(folder.glob("*.wav"))
    if not recordings:
        raise UserError(
            f"{folder} holds no recordings, of which silence is cut: set "
            "config.data.options.silence=0 or complete the data set"
        )
    durations = [audio.duration_s(path) for path in recordings]
    silent = []
    for test in (False, True):
        speakers = [example.client for example in examples if example.test == test]
        for index in range(round(share * len(speakers))):
            generator = np.random.default_rng([seed, int(test), index])
            which = generator.integers(len(recordings))
            cut = 0.8 * durations[which]
            begin, end = (cut, durations[which]) if test else (0.0, cut)
            start = generator.uniform(begin, max(begin, end - 1))
            clip = audio.Clip(recordings[which], start, min(1.0, end - start))
            speaker = speakers[generator.integers(len(speakers))]
            silent.append(Example(clip, SILENCE, speaker, test))
    return silent
