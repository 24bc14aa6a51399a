"""Free Spoken Digit Dataset."""

import re
from collections.abc import Sequence

from gptfl_jax.data import audio, downloads
from gptfl_jax.data.datasets import Source
from gptfl_jax.data.recordings import Example, Options, check_named, to_source

FEATURES = {
    **{"sample_rate_hz": 8000, "fft_size": 256, "hop": 80},
    **{"num_mels": 40, "max_duration_s": 0.8},
}
"""What it takes of `audio.FeatureSettings`, by default."""

_PAGE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
# Of the 3,000 recordings of 6 speakers.
_RELEASE = downloads.Release(
    f"{_PAGE}/archive/refs/heads/master.tar.gz",
    "sha256",
    "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
    "recordings/*.wav",
)


def fsdd(
    folder: str,
    *,
    speakers: Sequence[str] = (),
    test_speakers: str | Sequence[str] = (),
    download: bool = False,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """Free Spoken Digit Dataset: 3,000 English digits of 6 speakers, the clients.

    From https://github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0).
    Recordings are at 8 kHz, and so are the features, by default: windows of 32 ms every
    10 ms, 40 bands, 0.8 s at most.

    Args:
        folder: holds `recordings/`, or is that folder: `<digit>_<speaker>_<take>.wav`.
        speakers: those that count, in training and test; empty is all.
        test_speakers: a name or several: the test set is all they say, and nothing in
            training is theirs; empty is the data set's own split, takes 0 to 4 of
            everyone.
        download: gets the data set where the folder lacks it.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `recordings.Flaws`: noise in the training set.
        cache: folder for computed features; empty: computed at every start.
    """
    unpacked = "free-spoken-digit-dataset"
    root = downloads.locate(
        folder,
        ("recordings", f"{unpacked}/recordings", "."),
        "*_*_*.wav",
        "the recordings of FSDD",
        f"{_PAGE} (or set config.data.options.download=True)",
        _RELEASE if download else None,
        unpacked,
    )
    if isinstance(test_speakers, str):
        test_speakers = (test_speakers,)
    examples = []
    for path in sorted(root.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", path.name)
        if match:
            digit, speaker, take = match.groups()
            test = speaker in test_speakers if test_speakers else int(take) < 5
            examples.append(Example(audio.Clip(path), digit, speaker, test))
    check_named(speakers, {e.client for e in examples}, "speakers", root)
    if speakers:
        examples = [e for e in examples if e.client in speakers]
    check_named(test_speakers, {e.client for e in examples}, "test_speakers", root)
    names = tuple("0123456789")
    return to_source(examples, names, FEATURES | dict(features or {}), flaws, cache)
