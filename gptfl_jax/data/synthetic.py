"""The samples that stage 1 made, as examples for stages 2 and 3."""

import collections
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from gptfl_jax import artifacts
from gptfl_jax.data import audio, images, picture_cache
from gptfl_jax.data.datasets import Dataset, LoadReport, Sounds, Source
from gptfl_jax.data.original_samples import list_original
from gptfl_jax.errors import UserError

_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
_SOUND_ENDINGS = (".wav",)


def load_synthetic(
    folder: str | os.PathLike, source: Source
) -> tuple[Dataset, LoadReport]:
    """Reads the examples stage 1 made, in the form of the real ones of `source`.

    Args:
        folder: `<workdir>/synthetic`, see `synthetic_pictures` and `synthetic_sounds`.

    Returns:
        examples of the same classes and shape, and a report of the files left out.

    Raises:
        UserError: as these; or the real pictures are not square.
    """
    names = source.train.class_names
    if source.sounds is not None:
        frames = source.train.inputs[0].shape[1]
        return synthetic_sounds(folder, names, source.sounds, frames)
    height, width, channels = source.train.inputs.shape[1:]
    if height != width:
        raise UserError(
            f"config.data.source: its pictures are {width}x{height}, and synthetic "
            "ones are square; set config.data.image_size"
        )
    return synthetic_pictures(folder, names, height, channels)


def synthetic_sounds(
    folder: str | os.PathLike,
    class_names: Sequence[str],
    sounds: Sounds,
    frames: int,
) -> tuple[Dataset, LoadReport]:
    """Reads the clips stage 1 made, as features.

    Args:
        folder: `<workdir>/synthetic` with its `manifest.jsonl`; or clips as the
            original's scripts leave them, `list_original` says how.
        class_names: in the order of their labels.
        sounds: how they become features.
        frames: of the result. Longer clips are cut to the first so many, before their
            features are standardised; shorter ones are padded with zeros.

    Returns:
        (features [examples, frames, bands], lengths [examples]) in the order of the
        manifest, and a report of the files left out: unreadable or truncated, gone,
        changed since they were made, or of a class that is not in `class_names`.

    Raises:
        UserError: there is no such folder, a manifest line leaves the folder, or no
            clip could be used.
    """
    folder = pathlib.Path(folder)
    command = "python -m generate.speech (or .sounds) --config=... --workdir=..."
    files, labels, digests, left_out = _list_synthetic(
        folder, class_names, _SOUND_ENDINGS, command
    )
    settings = sounds.settings
    # With so many samples there are `frames` frames.
    longest_s = (frames * settings.hop - 1) / settings.sample_rate_hz
    limit_s = min(settings.max_duration_s or longest_s, longest_s)
    settings = settings._replace(max_duration_s=limit_s)
    broken: dict[int, str] = {}
    features, lengths = audio.extract(
        [audio.Clip(folder / file, sha256=digests.get(file)) for file in files],
        settings,
        sounds.cache,
        "synthetic clips",
        broken,
    )
    left_out += [(files[index], reason) for index, reason in sorted(broken.items())]
    _require_any(folder, len(lengths), left_out, "clips", command)
    padding = frames - features.shape[1]
    features = np.pad(features, ((0, 0), (0, padding), (0, 0)))
    labels = np.delete(np.asarray(labels, np.int32), list(broken))
    dataset = Dataset((features, lengths), labels, tuple(class_names))
    return dataset, LoadReport("synthetic clips", len(labels), tuple(left_out))


def synthetic_pictures(
    folder: str | os.PathLike,
    class_names: Sequence[str],
    image_size: int = 0,
    channels: int = 0,
) -> tuple[Dataset, LoadReport]:
    """Reads the pictures stage 1 made, converted to the data's size and channels.

    Args:
        folder: `<workdir>/synthetic` with its `manifest.jsonl`; or pictures as the
            original's scripts leave them, `list_original` says how.
        class_names: in the order of their labels.
        image_size, channels: of the result; 0 keeps those of the pictures.

    Returns:
        the pictures in the order of the manifest (or of the file names), and a report
        of the files left out: unreadable or truncated, gone, changed since they were
        made, not RGB or grey, of another size than most, or of a class that is not in
        `class_names`.

    Raises:
        UserError: there is no such folder, a manifest line leaves the folder, or no
            picture could be used.
    """
    folder = pathlib.Path(folder)
    command = "python -m generate.images --config=... --workdir=..."
    files, labels, digests, left_out = _list_synthetic(
        folder, class_names, _PICTURE_ENDINGS, command
    )
    read = functools.partial(
        images.read_picture,
        image_size=image_size,
        channels=channels,
        modes=("RGB", "L"),
    )
    decoded, about = picture_cache.decode_files(
        [folder / file for file in files],
        read,
        [image_size, channels, "RGB or L"],
        "synthetic pictures",
    )
    changed = [
        found not in ("", digests.get(file, found))
        for file, found in zip(files, decoded.contents, strict=True)
    ]
    good = [i for i, size in enumerate(decoded.sizes) if size and not changed[i]]
    usual = _most_common([about[index].size for index in good])
    kept = []
    for index, (file, picture) in enumerate(zip(files, about, strict=True)):
        if changed[index]:
            left_out.append((file, artifacts.CHANGED))
        elif picture.error:
            left_out.append((file, picture.error))
        elif picture.size != usual:
            ours, others = ("{}x{}".format(*s) for s in (picture.size, usual))
            left_out.append((file, f"size {ours}, most are {others}"))
        else:
            kept.append(index)
    _require_any(folder, len(kept), left_out, "pictures", command)
    pixels = decoded.take(kept)
    dataset = Dataset(pixels, np.asarray(labels, np.int32)[kept], tuple(class_names))
    return dataset, LoadReport("synthetic pictures", len(kept), tuple(left_out))


def labels_of_synthetic(
    folder: str | os.PathLike, class_names: Sequence[str]
) -> Int32[np.ndarray, " examples"]:
    """The labels of what stage 1 made, without reading it.

    Raises:
        UserError: there is no such folder, or a manifest line leaves it.
    """
    endings = (*_PICTURE_ENDINGS, *_SOUND_ENDINGS)
    command = "python -m generate.images --config=... --workdir=..."
    _, labels, *_ = _list_synthetic(pathlib.Path(folder), class_names, endings, command)
    return np.asarray(labels, np.int32)


def _require_any(
    folder: pathlib.Path,
    count: int,
    left_out: Sequence[tuple[str, str]],
    plural: str,
    command: str,
) -> None:
    if count:
        return
    if not left_out:
        raise UserError(f"{folder} holds no {plural}: make them with `{command}`")
    raise UserError(
        f"{folder}: none of {len(left_out):,} {plural} could be used; the first: "
        f"{': '.join(left_out[0])}. Make them with `{command}`"
    )


def _list_synthetic(
    folder: pathlib.Path,
    class_names: Sequence[str],
    endings: Sequence[str],
    command: str,
) -> tuple[list[str], list[int], dict[str, str], list[tuple[str, str]]]:
    """File names, labels, digests by name, and what is left out.

    By the manifest, or by the original's file names.
    """
    digests, left_out = {}, []
    if (folder / "manifest.jsonl").exists():
        made = artifacts.read_manifest(folder)
        entries = [(sample.file, sample.label) for sample in made]
        digests = {sample.file: sample.sha256 for sample in made if sample.sha256}
    else:
        artifacts.require(folder, command)
        entries, left_out = list_original(folder, class_names, endings)
    number = {name: label for label, name in enumerate(class_names)}
    files, labels = [], []
    for file, label in entries:
        if label in number:
            files.append(file)
            labels.append(number[label])
        else:
            left_out.append((file, f"label {label!r} is not a class"))
    return files, labels, digests, left_out


def _most_common(values: list) -> object:
    counts = collections.Counter(values)
    return max(sorted(counts), key=counts.get, default=None)
