"""Data sets of sound by name, as features; see `gptfl_jax.data.sources`.

A source's inputs are the pair (features [examples, frames, bands], lengths [examples])
of `gptfl_jax.data.audio`. Every source takes these options as well as its own:

- `features`: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
- `flaws`: fields of `Flaws`, to put noise into the training set.
- `cache`: a folder for computed features.
"""

import csv
import hashlib
import math
import os
import pathlib
import re
import reprlib
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from gptfl_jax import labels as label_sets
from gptfl_jax import user_files
from gptfl_jax.data import audio, noise
from gptfl_jax.data.datasets import Dataset, Sounds, Source
from gptfl_jax.errors import UserError

Options = Mapping[str, Any] | ConfigDict | None

SILENCE = "silence"

# What `fsdd` takes of `audio.FeatureSettings`, by default.
FSDD_FEATURES = {
    **{"sample_rate_hz": 8000, "fft_size": 256, "hop": 80},
    **{"num_mels": 40, "max_duration_s": 0.8},
}

_ENDINGS = {".wav", ".flac", ".ogg", ".mp3"}


class Flaws(NamedTuple):
    """What is wrong with the training data, by groups of (natural) clients."""

    snr_db: Sequence[int | float] = ()
    """Signal-to-noise ratio of the recordings, a number a group of clients."""
    snr_shares: Sequence[int | float] = ()
    """Share of the clients in each group; empty is even groups of all clients."""
    background: str = ""
    """Folder of recordings whose sounds are the noise; empty is white noise."""
    label_noise: Sequence[int | float] = ()
    """Share of wrong labels, a number a group of clients."""
    label_shares: Sequence[int | float] = ()
    label_sparsity: int | float = 0.4
    """See `noise.confusion_matrix`."""
    seed: int = 0


class _Example(NamedTuple):
    clip: audio.Clip
    label: str
    client: str
    test: bool


# Data sets --------------------------------------------------------------------------


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
        training is theirs; empty is the data set's own split, takes 0 to 4 of everyone.
      download: gets the data set where the folder lacks it.
    """
    unpacked = "free-spoken-digit-dataset"
    places, files = ("recordings", f"{unpacked}/recordings", "."), "*_*_*.wav"
    if download and not _find(folder, places, files):
        _download(_FSDD, pathlib.Path(folder) / unpacked)
    root = _find(
        folder,
        places,
        files,
        "the recordings of FSDD",
        f"{_FSDD_PAGE} (or set config.data.options.download=True)",
    )
    if isinstance(test_speakers, str):
        test_speakers = (test_speakers,)
    examples = []
    for path in sorted(root.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", path.name)
        if match:
            digit, speaker, take = match.groups()
            test = speaker in test_speakers if test_speakers else int(take) < 5
            examples.append(_Example(audio.Clip(path), digit, speaker, test))
    _check_named(speakers, {e.client for e in examples}, "speakers", root)
    if speakers:
        examples = [e for e in examples if e.client in speakers]
    _check_named(test_speakers, {e.client for e in examples}, "test_speakers", root)
    names = tuple("0123456789")
    return _load(examples, names, FSDD_FEATURES | dict(features or {}), flaws, cache)


def speech_commands(
    folder: str,
    *,
    test_list: str = "testing",
    silence: int | float = 0.0,
    seed: int = 0,
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
        are seconds of `_background_noise_`, the training set's from the first 80 % of
        each recording and the test set's from the rest, dealt to random speakers. The
        original has the class but no example of it.
      seed: of the silence.
      download: gets the data set (2.4 GB, CC BY 4.0) where the folder lacks it.
    """
    if test_list not in ("testing", "validation"):
        raise UserError(
            f"config.data.options.test_list = {test_list!r}: takes testing or "
            "validation"
        )
    places = ("speech_commands_v0.02", ".")
    if download and not _find(folder, places, "testing_list.txt"):
        _download(_SPEECH_COMMANDS, pathlib.Path(folder) / places[0])
    root = _find(
        folder,
        places,
        "testing_list.txt",
        "Speech Commands v0.02",
        f"{_SPEECH_COMMANDS.url} (or set config.data.options.download=True)",
    )
    lists = {
        name: set(
            user_files.read_text(root / f"{name}_list.txt", _MOST_TABLE_BYTES).split()
        )
        for name in ("testing", "validation")
    }
    left_out = lists["validation" if test_list == "testing" else "testing"]
    words = label_sets.label_set("speech_commands").classes
    examples = []
    for word in words:
        for path in sorted((root / word).glob("*.wav")):
            name = f"{word}/{path.name}"
            if name not in left_out:
                speaker = path.name.split("_")[0]
                test = name in lists[test_list]
                examples.append(_Example(audio.Clip(path), word, speaker, test))
    examples += _silence(root / "_background_noise_", examples, silence, seed)
    return _load(examples, (*words, SILENCE), features, flaws, cache)


def esc50(
    folder: str,
    *,
    test_folds: int | Sequence[int] = 5,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """ESC-50 (Piczak 2015): 2,000 clips of 5 s of 50 environmental sounds, 5 folds.

    From https://github.com/karolpiczak/ESC-50 (CC BY-NC 3.0). Clips were cut from 1 or
    more seconds of a recording of Freesound; the recordings are the natural clients, to
    be dealt out as they are or ignored in favour of a partition by labels.

    Args:
      folder: holds `ESC-50-master/`, or is that folder: `meta/esc50.csv`, `audio/`.
      test_folds: one or several of 1 to 5.
    """
    places = ("ESC-50-master", "ESC-50", ".")
    root = _find(folder, places, "meta/esc50.csv", "ESC-50", _ESC50_PAGE)
    test_folds = _checked_folds(test_folds, 5)
    names = label_sets.label_set("esc50").classes
    columns = {
        "filename": _file_name,
        "fold": _whole_number(1, 5),
        "category": _one_of(names),
        "src_file": _text,
    }
    examples = [
        _Example(
            audio.Clip(root / "audio" / row["filename"]),
            row["category"],
            row["src_file"],
            row["fold"] in test_folds,
        )
        for row in _read_table(root / "meta" / "esc50.csv", columns)
    ]
    return _load(examples, names, features, flaws, cache)


def urbansound8k(
    folder: str,
    *,
    test_folds: int | Sequence[int] = 10,
    min_duration_s: int | float = 0.1,
    download: bool = False,
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """UrbanSound8K (Salamon et al. 2014): 8,732 clips of up to 4 s in 10 classes.

    They come in 10 folds, with all that was cut from one recording of Freesound in one
    of them; the recordings are the natural clients.

    Args:
      folder: holds `UrbanSound8K/`, or is that folder: `metadata/UrbanSound8K.csv`,
        `audio/fold<n>/`.
      test_folds: one or several of 1 to 10.
      min_duration_s: shorter clips are left out; the original's limit is 0.1 s.
      download: gets the data set (6 GB) where the folder lacks it. Its licence, CC
        BY-NC 4.0, forbids commercial use.
    """
    places, table = ("UrbanSound8K", "."), "metadata/UrbanSound8K.csv"
    if download and not _find(folder, places, table):
        _download(_URBANSOUND8K, pathlib.Path(folder) / places[0])
    root = _find(
        folder,
        places,
        table,
        "UrbanSound8K",
        f"{_URBANSOUND8K.url} (or set config.data.options.download=True)",
    )
    test_folds = _checked_folds(test_folds, 10)
    names = label_sets.label_set("urbansound8k").classes
    columns = {
        "slice_file_name": _file_name,
        "fsID": _text,
        "start": _number,
        "end": _number,
        "fold": _whole_number(1, 10),
        "classID": _whole_number(0, len(names) - 1),
    }
    examples = []
    for row in _read_table(root / table, columns):
        if row["end"] - row["start"] >= min_duration_s:
            path = root / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
            label, test = names[row["classID"]], row["fold"] in test_folds
            examples.append(_Example(audio.Clip(path), label, row["fsID"], test))
    return _load(examples, names, features, flaws, cache)


CREMA_D_EMOTIONS = {
    **{"NEU": "neutral", "HAP": "happy", "SAD": "sad"},
    **{"ANG": "anger", "DIS": "disgust", "FEA": "fear"},
}
_CREMA_D_ACTORS = range(1001, 1092)
# It is known to hold no sound.
_CREMA_D_BROKEN = "1076_MTI_SAD_XX.wav"


def crema_d(
    folder: str,
    *,
    test_fold: int = 1,
    emotions: Sequence[str] = ("neutral", "happy", "sad", "anger"),
    labels: str = "acted",
    features: Options = None,
    flaws: Options = None,
    cache: str = "",
) -> Source:
    """CREMA-D (Cao et al. 2014): sentences in six emotions by 91 actors, the clients.

    From https://github.com/CheyneyComputerScience/CREMA-D (Open Database License).

    Args:
      folder: holds `CREMA-D/`, or is that folder: `AudioWAV/`, and
        `processedResults/summaryTable.csv` for the votes.
      test_fold: of 1 to 5: the actors in order of their number are cut into five folds,
        the first of 19 actors and the others of 18.
      emotions: the classes, in order; others are left out. The original takes these.
      labels: `acted` is what the actor was told to show; `voted` is what most of those
        who saw and heard it named, as in the original, and clips without a single
        winner are left out.
    """
    root = _find(folder, ("CREMA-D", "."), "AudioWAV", "CREMA-D", _CREMA_D_PAGE)
    _checked_folds(test_fold, 5)
    _check_named(emotions, set(CREMA_D_EMOTIONS.values()), "emotions", "CREMA-D")
    if labels not in ("acted", "voted"):
        raise UserError(
            f"config.data.options.labels = {labels!r}: takes acted or voted"
        )
    voted = {}
    if labels == "voted":
        initials = {name[0].upper(): name for name in CREMA_D_EMOTIONS.values()}
        table = root / "processedResults" / "summaryTable.csv"
        for row in _read_table(table, {"FileName": str, "MultiModalVote": str}):
            voted[row["FileName"]] = initials.get(row["MultiModalVote"], "")
    found = {}
    for path in sorted((root / "AudioWAV").glob("*.wav")):
        match = re.fullmatch(r"(\d{4})_[A-Z]{3}_([A-Z]{3})_[A-Z]{2}\.wav", path.name)
        if match and path.name != _CREMA_D_BROKEN:
            actor, acted = match.groups()
            emotion = CREMA_D_EMOTIONS.get(acted, "")
            if labels == "voted":
                emotion = voted.get(path.stem, "")
            if emotion in emotions:
                found[path] = (emotion, actor)
    tested = np.array_split(_CREMA_D_ACTORS, 5)[test_fold - 1]
    examples = [
        _Example(audio.Clip(path), emotion, actor, int(actor) in tested)
        for path, (emotion, actor) in found.items()
    ]
    return _load(examples, tuple(emotions), features, flaws, cache)


# From examples to arrays ------------------------------------------------------------


def _load(
    examples: list[_Example],
    class_names: tuple[str, ...],
    features: Options,
    flaws: Options,
    cache: str,
) -> Source:
    """Reads the examples; both parts are padded to the longest clip of all."""
    settings = _settings(audio.FeatureSettings, features, "features")
    flaws = _settings(Flaws, flaws, "flaws")
    train = [example for example in examples if not example.test]
    test = [example for example in examples if example.test]
    for part, name in ((train, "training"), (test, "test")):
        if not part:
            raise UserError(
                f"config.data.folder: the {name} set is empty: complete the data set"
            )
    clips = [*_noisy_clips(train, flaws), *(example.clip for example in test)]
    inputs = audio.extract(clips, settings, cache, "recordings")
    number = {name: label for label, name in enumerate(class_names)}

    def part(examples: list[_Example], rows: slice) -> Dataset:
        labels = np.asarray([number[e.label] for e in examples], np.int32)
        clients = np.asarray([e.client for e in examples])
        arrays = tuple(leaf[rows] for leaf in inputs)
        return Dataset(arrays, labels, class_names, clients)

    data = part(train, slice(len(train)))
    if flaws.label_noise:
        data = data._replace(
            labels=noise.noisy_labels(
                data.labels,
                data.clients,
                len(class_names),
                flaws.label_noise,
                flaws.label_shares,
                flaws.label_sparsity,
                flaws.seed,
            )
        )
    # Features are standardised by themselves, not by constants of the data set.
    return Source(
        data,
        part(test, slice(len(train), None)),
        mean=(),
        std=(),
        sounds=Sounds(settings, cache, tuple(clips[: len(train)])),
    )


def _settings(kind, given, option):
    unknown = sorted(set(given or {}) - set(kind._fields))
    if unknown:
        raise UserError(
            f"config.data.options.{option} does not take {', '.join(unknown)}; it "
            f"takes {', '.join(kind._fields)}"
        )
    return kind(**(given or {}))


def _noisy_clips(examples: list[_Example], flaws: Flaws) -> list[audio.Clip]:
    if not flaws.snr_db:
        return [example.clip for example in examples]
    recordings = []
    if flaws.background:
        recordings = sorted(
            str(path)
            for path in pathlib.Path(flaws.background).rglob("*")
            if path.suffix.lower() in _ENDINGS
        )
        if not recordings:
            raise UserError(
                f"config.data.options.flaws.background: {flaws.background} holds no "
                "recordings"
            )
    names = sorted({example.client for example in examples})
    level = dict(
        zip(
            names,
            noise.level_of_client(
                len(names), flaws.snr_db, flaws.snr_shares, flaws.seed
            ).tolist(),
            strict=True,
        )
    )
    clips = []
    for index, example in enumerate(examples):
        clip, snr_db = example.clip, level[example.client]
        if not np.isnan(snr_db):
            recording = ""
            if recordings:
                generator = np.random.default_rng([flaws.seed, index, 1])
                recording = recordings[generator.integers(len(recordings))]
            clip = clip._replace(
                noise=noise.Noise(snr_db, (flaws.seed, index, 0), recording)
            )
        clips.append(clip)
    return clips


def _silence(
    folder: pathlib.Path, examples: list[_Example], share: int | float, seed: int
) -> list[_Example]:
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
            silent.append(_Example(clip, SILENCE, speaker, test))
    return silent


# Files ------------------------------------------------------------------------------

_FSDD_PAGE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
_ESC50_PAGE = "https://github.com/karolpiczak/ESC-50/archive/master.zip"
_CREMA_D_PAGE = "https://github.com/CheyneyComputerScience/CREMA-D (needs git-lfs)"


class _Release(NamedTuple):
    url: str
    algorithm: str
    digest: str
    """Of the archive, or of `files` in it."""
    files: str = ""
    """Pattern of the files to check in place of the archive, where the archive is made
    on demand and its bytes may change: the digest is of what `sha256sum` prints in
    their folder, in the order of their names."""


# Of the 3,000 recordings of 6 speakers.
_FSDD = _Release(
    f"{_FSDD_PAGE}/archive/refs/heads/master.tar.gz",
    "sha256",
    "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
    "recordings/*.wav",
)
# The checksums are those that torchaudio, TensorFlow Datasets and Zenodo publish.
_SPEECH_COMMANDS = _Release(
    "https://storage.googleapis.com/download.tensorflow.org/data/"
    "speech_commands_v0.02.tar.gz",
    "sha256",
    "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
)
_URBANSOUND8K = _Release(
    "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz",
    "md5",
    "9aa69802bbf37fb986f71ec1483a196e",
)


def _find(
    folder: str, places: Sequence[str], has: str, what: str = "", source: str = ""
) -> pathlib.Path | None:
    """The first of `places` in the folder that has a file; without `what`, or None."""
    for place in places:
        root = pathlib.Path(folder) / place
        if root.is_dir() and any(root.glob(has)):
            return root
    if not what:
        return None
    raise UserError(
        f"config.data.folder = {folder!r}: holds no {has}, hence not {what}; get it "
        f"from {source}"
    )


# The longest of them, CREMA-D's, has 0.7 MB.
_MOST_TABLE_BYTES = 2**25


def _read_table(
    path: pathlib.Path, columns: Mapping[str, Callable[[str], Any]]
) -> list[dict[str, Any]]:
    """The rows of a CSV file.

    Args:
      columns: those wanted, each with what makes its value of the text, or raises
        ValueError.

    Raises:
      Unreadable: the file is missing or damaged, or lacks a column or a value.
    """
    text = user_files.read_text(path, _MOST_TABLE_BYTES)
    reader = csv.DictReader(text.splitlines(), strict=True)
    rows = []
    try:
        missing = sorted(set(columns) - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(f"has no column {', '.join(missing)}")
        for row in reader:
            rows.append({name: _cell(row, name, columns[name]) for name in columns})
    except (csv.Error, ValueError) as error:
        where = f"line {reader.line_num}: " if reader.line_num > 1 else ""
        raise user_files.Unreadable(path, where + user_files.brief(error)) from error
    if not rows:
        raise user_files.Unreadable(path, "has no rows")
    return rows


def _cell(row: Mapping[str, str | None], column: str, kind: Callable[[str], Any]):
    try:
        return kind(row[column] or "")
    except ValueError as error:
        found = reprlib.repr(row[column])
        raise ValueError(f"{column} = {found}: {error}") from error


def _text(text: str) -> str:
    if not text:
        raise ValueError("is missing")
    return text


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("is no number")
    return number


def _file_name(text: str) -> str:
    """A name in its folder, which it cannot leave."""
    plain = user_files.printable(text) == text and len(os.fsencode(text)) < 256
    if not plain or text in ("", "..") or pathlib.PurePath(text).name != text:
        raise ValueError("is no file name")
    return text


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text):
        if not re.fullmatch("[0-9]{1,4}", text) or not least <= int(text) <= most:
            raise ValueError(f"is no whole number of {least} to {most}")
        return int(text)

    return read


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    def read(text):
        if text not in names:
            raise ValueError("is no class of the data set")
        return text

    return read


def _checked_folds(folds: int | Sequence[int], count: int) -> Sequence[int]:
    folds = (folds,) if isinstance(folds, int) else folds
    if not folds or set(folds) - set(range(1, count + 1)):
        raise UserError(f"config.data.options: test folds are of 1 to {count}: {folds}")
    return folds


def _check_named(names: Sequence[str], known: set[str], option: str, where) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise UserError(
            f"config.data.options.{option}: {where} has no {', '.join(unknown)}; it "
            f"has {', '.join(sorted(known))}"
        )


def _download(release: _Release, target: pathlib.Path) -> None:
    """Gets an archive, checks it, and unpacks it to `target`, whole or not at all.

    An archive that holds one folder is unpacked to what is in it.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=".download-"
        ) as temporary:
            archive = pathlib.Path(temporary) / "archive"
            found = _fetch(release, archive)
            if not release.files:
                _check(release, found)
            unpacked = pathlib.Path(temporary) / "unpacked"
            with tarfile.open(archive) as tar:
                tar.extractall(unpacked, filter="data")
            inside = list(unpacked.iterdir())
            only = inside[0] if len(inside) == 1 and inside[0].is_dir() else unpacked
            if release.files:
                _check(release, _digest_of_files(release, only))
            os.replace(only, target)
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(
            f"{release.url}: cannot be downloaded to {target} "
            f"({user_files.brief(error)}): try again, or download and unpack it there "
            "yourself"
        ) from error


def _check(release: _Release, found: str) -> None:
    if found != release.digest:
        raise UserError(
            f"{release.url}: the {release.algorithm} of {release.files or 'it'} is "
            f"{found} and should be {release.digest}: try again, or get it by other "
            "means"
        )


def _digest_of_files(release: _Release, folder: pathlib.Path) -> str:
    checksum = hashlib.new(release.algorithm)
    for path in sorted(folder.glob(release.files)):
        one = hashlib.new(release.algorithm, path.read_bytes()).hexdigest()
        checksum.update(f"{one}  {path.name}\n".encode())
    return checksum.hexdigest()


def _fetch(release: _Release, path: pathlib.Path) -> str:
    """Downloads to a file with a progress bar; returns the checksum."""
    checksum = hashlib.new(release.algorithm)
    with (
        urllib.request.urlopen(release.url, timeout=60) as reply,
        path.open("wb") as to,
    ):
        size = int(reply.headers.get("Content-Length") or 0)
        with tqdm(total=size, unit="B", unit_scale=True, disable=None) as bar:
            while block := reply.read(1 << 20):
                checksum.update(block)
                to.write(block)
                bar.update(len(block))
    return checksum.hexdigest()
