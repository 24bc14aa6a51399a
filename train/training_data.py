"""What stage 2 trains on: synthetic, real or procedural examples, and real tests."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int32
from ml_collections import ConfigDict

from gptfl_jax import devices
from gptfl_jax.data import (
    datasets,
    outline,
    picture_cache,
    procedural,
    sample_counts,
    sources,
    stored_rows,
)
from gptfl_jax.data.synthetic import labels_of_synthetic, load_synthetic
from gptfl_jax.errors import UserError, refused
from gptfl_jax.labels import same_name
from gptfl_jax.progress import Progress, say


class Data(NamedTuple):
    """What a run trains on, chooses by, and is measured by."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    source: datasets.Source
    """The real data; of procedural ones, these in its form."""

    @property
    def test(self) -> datasets.Dataset:
        return self.source.test


def load(config: ConfigDict, workdir: pathlib.Path) -> Data:
    """Loads the training set the config asks for, and the real test set.

    Raises:
        UserError: there are no synthetic data; the message has the command that makes
            them.
    """
    source = sources.load(
        config.data.source,
        config.data.folder,
        image_size=config.data.image_size,
        channels=config.data.channels,
        **config.data.options,
    )
    dataset = source.train
    if config.train.data == "procedural":
        source = _procedural(config, source)
        dataset = source.train
    elif config.train.data != "real":
        names = dataset.class_names
        synthetic, report = load_synthetic(workdir / "synthetic", source)
        say(str(report))
        if most := config.train.synthetic_per_class:
            synthetic = datasets.select(synthetic, _first(synthetic.labels, most))
            say(f"of these {len(synthetic.labels):,}, {most} of each class at most")
        absent = sorted(set(range(len(names))) - set(synthetic.labels.tolist()))
        if absent:
            lacking = ", ".join(names[label] for label in absent)
            say(f"no {report.plural} of {lacking}")
        both = config.train.data == "both"
        dataset = datasets.concatenate(dataset, synthetic) if both else synthetic
    validation = None
    if config.train.validation_fraction:
        held_out = datasets.hold_out(
            dataset.labels,
            config.train.validation_fraction,
            config.seed,
            datasets.contents(dataset.inputs),
        )
        if not held_out.any():
            raise refused(
                "train.validation_fraction",
                config.train.validation_fraction,
                "0 while no class has two different examples, of which to hold one out",
            )
        validation = datasets.select(dataset, held_out)
        dataset = datasets.select(dataset, ~held_out)
    return Data(dataset, validation, source)


def _first(
    labels: Int32[np.ndarray, " examples"], most: int
) -> Bool[np.ndarray, " examples"]:
    """The first `most` examples of each class."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return rank < most


def _procedural(config: ConfigDict, source: datasets.Source) -> datasets.Source:
    """The source with procedural examples in place of its own."""
    classes, count = config.train.procedural_classes, config.train.procedural_per_class
    total = classes * (count + procedural.tests_of(count))
    with Progress(total, "example", name="drawing") as bar:
        made = procedural.like(source, classes, count, config.seed, bar.update)
    return source._replace(train=made.train, test=made.test)


def outlined(config: ConfigDict, workdir: pathlib.Path) -> tuple[Data, list[str]]:
    """The data, of whose training and validation sets only the sizes are right."""
    source, lacking = outline.load(
        config.data.source,
        config.data.folder,
        image_size=config.data.image_size,
        channels=config.data.channels,
        **config.data.options,
    )
    origin = [f"real: sizes as released, since it is not there: {lacking}"]
    origin = origin if lacking else []
    labels, names = source.train.labels, source.train.class_names
    decoded = devices.in_files(source.train.inputs)
    if config.train.data == "procedural":
        decoded = False
        settings = config.train
        names = tuple(map(str, range(settings.procedural_classes)))
        labels = np.arange(len(names), dtype=np.int32)
        test = np.repeat(labels, procedural.tests_of(settings.procedural_per_class))
        labels = np.repeat(labels, settings.procedural_per_class)
        origin = ["procedural: drawn when they are needed"]
    elif config.train.data != "real":
        try:
            made = labels_of_synthetic(workdir / "synthetic", names)
        except UserError:
            origin.append("synthetic: not made yet, counted as they will be")
            made = _to_be_made(config, source)
        if most := config.train.synthetic_per_class:
            made = made[_first(made, most)]
        both = config.train.data == "both"
        many = source.sounds is None and len(made) > picture_cache.BLOCK
        decoded = many or (both and decoded)
        labels = np.concatenate([labels, made]) if both else made
    held_out = np.zeros(len(labels), bool)
    if config.train.validation_fraction:
        held_out = datasets.hold_out(
            labels, config.train.validation_fraction, config.seed
        )

    def part(labels):
        def like(leaf):
            return np.broadcast_to(leaf[:1] * 0, (len(labels), *leaf.shape[1:]))

        inputs = jax.tree.map(like, source.train.inputs)
        if decoded:
            inputs = stored_rows.StoredRows([stored_rows.Part(inputs)])
        return datasets.Dataset(inputs, labels, names)

    validation = part(labels[held_out]) if held_out.any() else None
    if config.train.data == "procedural":
        source = source._replace(train=part(labels), test=part(test))
    return Data(part(labels[~held_out]), validation, source), origin


def _to_be_made(config: ConfigDict, source: datasets.Source) -> np.ndarray:
    """Labels of as many synthetic examples as stage 1 will make."""
    names, labels = source.train.class_names, source.train.labels
    if "generate" not in config:
        return labels
    wanted = config.generate.samples_per_class
    if isinstance(wanted, ConfigDict):
        wanted = wanted.to_dict()
    counts = np.bincount(labels, minlength=len(names)).tolist()
    # A label set may name a class of which there is no example, as silence.
    wanted_of = [name for name, number in zip(names, counts, strict=True) if number]
    if "prompts" in config and config.prompts.classes:
        wanted_of = [
            name
            for name in names
            if any(same_name(name, each) for each in config.prompts.classes)
        ]
    planned = sample_counts.samples_per_class(
        wanted,
        wanted_of,
        lambda: dict(zip(names, counts, strict=True)),
        config.data.source,
    )
    numbers = [planned.get(name, 0) for name in names]
    return np.repeat(np.arange(len(names), dtype=np.int32), numbers)
