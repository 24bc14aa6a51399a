"""A classifier in a folder of its own, for others: weights and what they are of.

    model.safetensors   the weights, by the names and in the layout of PyTorch: those of
                        torchvision for the families that it has, those of the original
                        for the others of GPT-FL
    config.json         num_labels, id2label and label2id as the Hugging Face hub has
                        them; of pictures image_size, image_mean and image_std; and
                        under gptfl_jax what it takes to read the folder back

The metadata of the weights hold config.json once more, should they lose it.
"""

import json
import os
import pathlib
from typing import Any

import jax

from gptfl_jax import artifacts, description, models, training
from gptfl_jax.artifacts.files import plain
from gptfl_jax.description import Description
from gptfl_jax.errors import UserError
from gptfl_jax.released import hub

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_export(folder: str | os.PathLike) -> bool:
    """Whether a folder looks like one that `write` has written."""
    return (pathlib.Path(folder) / CONFIG).is_file() and (
        pathlib.Path(folder) / WEIGHTS
    ).is_file()


def write(
    folder: str | os.PathLike, about: Description, variables: training.Variables
) -> None:
    """Writes a classifier; files that are there give way.

    Raises:
        UserError: the model has no name, or the folder cannot be written to.
    """
    if not about.model:
        raise UserError(
            "the model was given as an object, and a file cannot say which: give it by "
            "name, or by the path of its file"
        )
    text = json.dumps(plain(config_of(about)), indent=2, ensure_ascii=False)
    weights = models.released_weights(about.model, jax.device_get(variables))
    folder = pathlib.Path(folder)
    artifacts.write_files(
        {
            folder / WEIGHTS: hub.packed(weights, {"config": text}),
            folder / CONFIG: text.encode(errors="backslashreplace"),
        }
    )


def config_of(about: Description) -> dict[str, Any]:
    """The content of config.json."""
    names = about.class_names
    config = {
        "num_labels": len(names),
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    shape = getattr(about.example, "shape", ())
    if about.sounds is None and len(shape) == 3:
        config |= {
            "image_size": shape[0] if shape[0] == shape[1] else shape[:2],
            "num_channels": shape[2],
            "image_mean": about.mean,
            "image_std": about.std,
        }
    return {**config, "gptfl_jax": about.content()}


def read(
    folder: str | os.PathLike, model: str = ""
) -> tuple[Description, training.Learner, training.Variables]:
    """The classifier that `write` has written: description, learner and weights.

    Args:
        model: file or module of a model of your own, as of `load_classifier`.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
    """
    path = pathlib.Path(folder) / CONFIG
    remedy = "export the classifier again"
    try:
        about = description.read(path, remedy, model, section="gptfl_jax")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {remedy}") from None
    learner = description.make_learner(about)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    file = pathlib.Path(folder) / WEIGHTS
    variables, whole = models.load_weights(about.model, shapes, file)
    if not whole:
        raise UserError(
            f"{file}: not of the {len(about.class_names)} classes of {CONFIG}: {remedy}"
        )
    return about, learner, variables
