"""What a trained classifier is apart from its weights, as files keep it."""

import math
import os
import pathlib
import shlex
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from gptfl_jax import artifacts, choices, families, models, training, user_files
from gptfl_jax.data import audio
from gptfl_jax.data.datasets import Source
from gptfl_jax.errors import UserError, shown

FILE = "classifier.json"
"""In the folder of a run: what it takes to use its checkpoints."""

_SHAPE = {
    "model": {"name": "text", "options": {"*": "anything"}},
    "class_names": ["text"],
    "inputs": [{"shape": ["whole"], "dtype": "text"}],
    "mean": ["number"],
    "std": ["number"],
    "sounds": {"*?": "anything"},
}


class Description(NamedTuple):
    """What a classifier is apart from its weights.

    Attributes:
        model: name, as `config.model.name`; empty for one that was given as an object.
        options: of the model.
        class_names: in the order of the logits.
        example: the raw input of one example, without a batch axis.
        mean, std: of `training.Normalisation`.
        sounds: how recordings become inputs; None: the inputs are no sounds.
    """

    model: str
    options: dict[str, Any]
    class_names: tuple[str, ...]
    example: PyTree[jax.ShapeDtypeStruct]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sounds: audio.FeatureSettings | None = None

    def content(self) -> dict[str, Any]:
        """It as JSON has it; `read` is the way back."""
        return {
            "model": {"name": self.model, "options": self.options},
            "class_names": self.class_names,
            "inputs": [
                {"shape": leaf.shape, "dtype": str(np.dtype(leaf.dtype))}
                for leaf in jax.tree.leaves(self.example)
            ],
            "mean": self.mean,
            "std": self.std,
            "sounds": {} if self.sounds is None else self.sounds._asdict(),
        }

    def save(self, folder: str | os.PathLike) -> None:
        """Writes it to `classifier.json` of a run's folder."""
        artifacts.write_json(pathlib.Path(folder) / FILE, self.content())


def read(
    path: str | os.PathLike, remedy: str, model: str = "", section: str = ""
) -> Description:
    """The description that a file holds, as anyone may have written it.

    Args:
        path: the file.
        remedy: what mends a damaged one, for error messages.
        model: file or module of a model of the user's own. One that the file names is
            not run.
        section: of the file's content; empty: all of it.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or names code of the user's own that `model` does not.
    """
    shape = {section: _SHAPE} if section else _SHAPE
    content = artifacts.read_json(path, shape, remedy)
    content = content[section] if section else content
    name = model or content["model"]["name"]
    if not model and choices.is_own(name):
        raise UserError(
            f"{pathlib.Path(path).parent}: its model is {name!r}, code of your own. "
            f"Say so to run it: model={name!r}, of a program "
            + shlex.quote(f"--model={name}")
        )
    try:
        options = content["model"]["options"]
        choices.check(families.MODEL, name, options)
        return Description(
            name,
            options,
            tuple(content["class_names"]),
            _example(content["inputs"]),
            *_constants(content["mean"], content["std"]),
            _settings(content["sounds"]),
        )
    except (UserError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: {user_files.brief(error)}; {remedy}") from error


def _example(inputs: list[dict[str, Any]]) -> PyTree[jax.ShapeDtypeStruct]:
    leaves = []
    for each in inputs:
        dtype, shape = np.dtype(each["dtype"]), tuple(each["shape"])
        if dtype.kind not in "biuf":
            raise ValueError(f"inputs of {dtype} are none")
        if min(shape, default=1) < 1 or math.prod(shape) >= 2**31:
            raise ValueError(f"inputs of shape {shape} are none")
        leaves.append(jax.ShapeDtypeStruct(shape, dtype))
    if not leaves:
        raise ValueError("it has no inputs")
    return tuple(leaves) if len(leaves) > 1 else leaves[0]


def _constants(*both: list[float]) -> tuple[tuple[float, ...], ...]:
    mean, std = (tuple(map(float, each)) for each in both)
    if len(mean) != len(std):
        raise ValueError(f"it has {len(mean)} means and {len(std)} deviations")
    return mean, std


def _settings(sounds: dict[str, Any]) -> audio.FeatureSettings | None:
    if not sounds:
        return None
    settings = audio.FeatureSettings(**sounds)
    for name, default in audio.FeatureSettings()._asdict().items():
        value = getattr(settings, name)
        kinds = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, kinds):
            raise TypeError(f"sounds.{name} is {shown(value)}")
    return settings


def describe(model: str, options: dict[str, Any], source: Source) -> Description:
    """The classifier that a run trains on a source's data."""
    return Description(
        model,
        options,
        source.train.class_names,
        training.example_of(source.train.inputs),
        source.mean,
        source.std,
        source.sounds.settings if source.sounds else None,
    )


def make_learner(description: Description, **options: Any) -> training.Learner:
    """The model of a description, with its input processing.

    Args:
        options: of `training.make_learner`, as `augmentation` and `dtype`.
    """
    return training.make_learner(
        models.create(
            description.model, len(description.class_names), **description.options
        ),
        description.example,
        normalisation=training.Normalisation(description.mean, description.std),
        **options,
    )
