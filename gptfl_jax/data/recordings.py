"""From the recordings of a data set to a source: what all sources of sounds share.

A source's inputs are the pair (features [examples, frames, bands], lengths [examples])
of `gptfl_jax.data.audio`. Every source takes these options as well as its own:

- `features`: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}, or
  a pretrained network, as {"kind": "ntu-spml/distilhubert"} (`speech_models`).
- `flaws`: fields of `Flaws`, to put noise into the training set.
- `cache`: a folder for computed features.
"""

import pathlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gptfl_jax.data import audio, noise
from gptfl_jax.data.datasets import Dataset, Sounds, Source
from gptfl_jax.errors import UserError
from gptfl_jax.progress import say
from gptfl_jax.rules import Keywords

Options = Keywords | None
"""Fields to change, by name."""

Standardise = Literal["clip", "speaker"]
"""Over what each band of the features has mean 0 and deviation 1."""


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
    label_equal: bool = False
    """Whether the classes that one is confused with share its wrong labels equally, as
    in the original."""
    seed: int = 0


class Example(NamedTuple):
    """A recording of a data set."""

    clip: audio.Clip
    label: str
    client: str
    """Its natural client."""
    test: bool
    """Whether it belongs to the test set."""


def to_source(
    examples: list[Example],
    class_names: tuple[str, ...],
    features: Options,
    flaws: Options,
    cache: str,
    segment_s: int | float = 0.0,
    segment_hop_s: int | float = 1.0,
    standardise: Standardise = "clip",
) -> Source:
    """Reads the examples; both parts are padded to the longest clip of all.

    In segments, an example of the training set is a segment. One of the test set is a
    clip, whose segments are told together (`gptfl_jax.evaluation`): (features [clips,
    segments, frames, bands], lengths [clips, segments]), where a clip with fewer
    segments has some of length 0.

    Args:
        examples: in the order of the arrays, training and test mixed.
        class_names: in the order of their labels.
        features: fields of `audio.FeatureSettings` to change, as {"num_mels": 64}.
        flaws: fields of `Flaws`, to put noise into the training set.
        cache: a folder for computed features.
        segment_s: length of a segment in seconds; a shorter clip is one. 0: clips are
            examples.
        segment_hop_s: from the start of a segment to the next.
        standardise: over the frames of a clip, or of all clips that a speaker has in
            a part. Clips without a speaker, synthetic or a stranger's, are standardised
            each by itself in either case.

    Raises:
        UserError: a set without examples, a field that there is not, or recordings that
            cannot be read.
    """
    settings = audio.resolved(_settings(audio.FeatureSettings, features, "features"))
    flaws = _settings(Flaws, flaws, "flaws")
    train = [example for example in examples if not example.test]
    test = [example for example in examples if example.test]
    for part, name in ((train, "training"), (test, "test")):
        if not part:
            raise UserError(
                f"config.data.folder: the {name} set is empty: complete the data set"
            )
    per_clip = None
    if segment_s:
        cut = [_segments(each, segment_s, segment_hop_s) for each in test]
        per_clip = [len(each) for each in cut]
        train = [s for each in train for s in _segments(each, segment_s, segment_hop_s)]
        test = [segment for each in cut for segment in each]
    clips = [*_noisy_clips(train, flaws), *(example.clip for example in test)]
    computed = settings
    if standardise == "speaker":
        computed = settings._replace(standardise=False)
    inputs = audio.extract(clips, computed, cache, "recordings")
    number = {name: label for label, name in enumerate(class_names)}

    def part(examples: list[Example], rows: slice) -> Dataset:
        labels = np.asarray([number[e.label] for e in examples], np.int32)
        clients = np.asarray([e.client for e in examples])
        arrays = tuple(leaf[rows] for leaf in inputs)
        if standardise == "speaker":
            audio.standardise_groups(*arrays, clients, settings.by_band)
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
                flaws.label_equal,
            )
        )
    tested = part(test, slice(len(train), None))
    if per_clip is not None:
        tested = _together(tested, per_clip)
    # Features are standardised by themselves, not by constants of the data set.
    return Source(
        data,
        tested,
        mean=(),
        std=(),
        sounds=Sounds(settings, cache, tuple(clips[: len(train)])),
    )


def _segments(
    example: Example, segment_s: int | float, hop_s: int | float
) -> list[Example]:
    """A recording cut into whole segments; one that is shorter is one."""
    rest = audio.duration_s(example.clip.path) - segment_s
    # A hundredth of a second may lack to the last.
    count = 1 + max(0, int((rest + 0.01) // hop_s))
    return [
        example._replace(
            clip=example.clip._replace(
                start_s=float(i * hop_s), duration_s=float(segment_s)
            )
        )
        for i in range(count)
    ]


def _together(segments: Dataset, per_clip: Sequence[int]) -> Dataset:
    """The segments of each clip as one example."""
    clip = np.repeat(np.arange(len(per_clip)), per_clip)
    first = np.cumsum([0, *per_clip[:-1]])
    place = np.arange(len(clip)) - first[clip]

    def grouped(leaf: np.ndarray) -> np.ndarray:
        shape = len(per_clip), max(per_clip), *leaf.shape[1:]
        result = np.zeros(shape, leaf.dtype)
        result[clip, place] = leaf
        return result

    return segments._replace(
        inputs=tuple(map(grouped, segments.inputs)),
        labels=segments.labels[first],
        clients=segments.clients[first],
    )


def _settings(kind, given, option):
    unknown = sorted(set(given or {}) - set(kind._fields))
    if unknown:
        raise UserError(
            f"config.data.options.{option} does not take {', '.join(unknown)}; it "
            f"takes {', '.join(kind._fields)}"
        )
    return kind(**(given or {}))


def _noisy_clips(examples: list[Example], flaws: Flaws) -> list[audio.Clip]:
    if not flaws.snr_db:
        return [example.clip for example in examples]
    recordings = []
    if flaws.background:
        recordings = sorted(
            str(path)
            for path in pathlib.Path(flaws.background).rglob("*")
            if path.suffix.lower() in audio.ENDINGS
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


def long_enough(
    examples: list[Example],
    least_s: int | float,
    durations_s: Sequence[float] | None = None,
) -> list[Example]:
    """The clips that are not shorter than `least_s`; says how many are.

    Args:
        examples: of whole recordings.
        least_s: in seconds; 0 keeps all, without a look at them.
        durations_s: of each clip, in seconds; None: as their files have it.

    Raises:
        UserError: a recording that cannot be read.
    """
    if not least_s:
        return examples
    if durations_s is None:
        durations_s = [audio.duration_s(example.clip.path) for example in examples]
    kept = [
        example
        for example, duration_s in zip(examples, durations_s, strict=True)
        if duration_s >= least_s
    ]
    if short := len(examples) - len(kept):
        say(f"left out {short:,} clips shorter than {least_s:g} s, kept {len(kept):,}")
    return kept


def checked_folds(folds: int | Sequence[int], count: int) -> Sequence[int]:
    folds = (folds,) if isinstance(folds, int) else folds
    if not folds or set(folds) - set(range(1, count + 1)):
        raise UserError(f"config.data.options: test folds are of 1 to {count}: {folds}")
    return folds


def check_named(names: Sequence[str], known: set[str], option: str, where) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise UserError(
            f"config.data.options.{option}: {where} has no {', '.join(unknown)}; it "
            f"has {', '.join(sorted(known))}"
        )
