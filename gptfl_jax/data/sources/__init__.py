"""Data sets by name, as arrays: one a file, which a config names in `data.source`.

A source is a function that returns a `Source`, in a file of this package or of your own
(`my_package.my_file`, `path/to/file.py`). Its keywords are options of the config,
`data.options`; `folder`, `image_size` and `channels` are given to those that take them.
What does not come with a package is read from the folder; nothing is downloaded unless
an option asks for it. A file may also hold `class_names(folder, **options)`, where the
names are to be had without reading the examples, and `known_labels(**options)`, where
an option says which known label set they are of.
"""

import inspect
import sys
from collections.abc import Callable, Mapping

import numpy as np

from gptfl_jax import choices, families, labels
from gptfl_jax.data import images
from gptfl_jax.data.datasets import Dataset, Source
from gptfl_jax.data.stored_rows import Rows
from gptfl_jax.errors import UserError


def load(
    name: str,
    folder: str = "",
    /,
    *,
    image_size: int = 0,
    channels: int = 0,
    **options,
) -> Source:
    """Loads the source called `name`, converted to `image_size` and `channels`.

    Args:
        name: of `available`, or of your own.
        folder: where the data lie; sources that come with a package need none.
        image_size, channels: 0 keeps the source's own.
        options: keywords of the source.

    Raises:
        UserError: no such source, an option it does not take, missing or broken files.
    """
    checked = choices.check(families.SOURCE, name, options)
    needed = inspect.signature(choices.find(families.SOURCE, name)).parameters
    if "folder" in needed and needed["folder"].default in ("", inspect.Parameter.empty):
        if not folder:
            raise UserError(
                f"config.data.folder is empty: {name} is read from a folder, give its "
                "path"
            )
    given = {"folder": folder, "image_size": image_size, "channels": channels}
    source = choices.bind(families.SOURCE, name, checked, **given)
    if not isinstance(source.train.inputs, Rows):
        if image_size or channels:
            raise UserError(
                f"config.data.image_size and config.data.channels: {name} holds no "
                "pictures; leave them 0"
            )
        return source

    def converted(dataset: Dataset) -> Dataset:
        height, width, depth = dataset.inputs.shape[1:]
        if height == width == (image_size or width) and depth == (channels or depth):
            return dataset
        inputs = images.convert(np.asarray(dataset.inputs), image_size, channels)
        return dataset._replace(inputs=inputs)

    source = source._replace(train=converted(source.train), test=converted(source.test))
    channels = source.train.inputs.shape[-1]
    return source._replace(
        mean=tuple(map(float, images.normalisation_for(source.mean, channels))),
        std=tuple(map(float, images.normalisation_for(source.std, channels))),
    )


def available() -> Mapping[str, Callable[..., Source]]:
    """The sources that come with the library, by name."""
    return choices.available(families.SOURCE)


def class_names(name: str, folder: str = "", /, **options) -> tuple[str, ...]:
    """The class names of a source, without reading its examples where it knows a way.

    A known data set need not be there to be named.

    Raises:
        UserError: as `load`.
    """
    known = name in labels.known_data_sets()
    if known and name not in available():
        return labels.label_set(name).classes
    checked = choices.check(families.SOURCE, name, options)
    module = sys.modules[choices.find(families.SOURCE, name).__module__]
    if folder and hasattr(module, "class_names"):
        return module.class_names(folder, **checked)
    if known:
        return labels.label_set(name).classes
    return load(name, folder, **options).train.class_names


def known_labels(name: str, /, **options) -> str:
    """The known label set whose prompts suit a source; its name where it says none.

    Raises:
        UserError: as `load`, but a name that stands alone is fine.
    """
    if name in choices.names_alone(families.SOURCE) and not options:
        return name
    checked = choices.check(families.SOURCE, name, options)
    module = sys.modules[choices.find(families.SOURCE, name).__module__]
    if hasattr(module, "known_labels"):
        return module.known_labels(**checked) or name
    return name
