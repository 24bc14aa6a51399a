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
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from gptfl_jax import artifacts, description, models, training, user_files
from gptfl_jax.artifacts.files import plain
from gptfl_jax.description import Description
from gptfl_jax.errors import UserError
from gptfl_jax.released import hub

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SECTION = "gptfl_jax"
"""Of config.json: the classifier's `Description`."""


def is_export(folder: str | os.PathLike) -> bool:
    """Whether a folder looks like one that `write` has written."""
    return (pathlib.Path(folder) / CONFIG).is_file() and (
        pathlib.Path(folder) / WEIGHTS
    ).is_file()


def write(
    folder: str | os.PathLike,
    about: Description,
    variables: training.Variables,
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a classifier; files that are there give way.

    Args:
        beside: content of further files, by their names in the folder.

    Raises:
        UserError: the model has no name, or the folder cannot be written to.
    """
    if not about.model:
        raise UserError(
            "the model was given as an object, and a file cannot say which: give it by "
            "name, or by the path of its file"
        )
    text = json.dumps(plain(config_of(about)), indent=2, ensure_ascii=False)
    weights = released_weights(about, variables)
    contents = {
        WEIGHTS: hub.packed(weights, {"config": text}),
        CONFIG: text.encode(errors="backslashreplace"),
        **(beside or {}),
    }
    folder = pathlib.Path(folder)
    artifacts.write_files({folder / name: each for name, each in contents.items()})


def released_weights(
    about: Description, variables: training.Variables
) -> dict[str, np.ndarray]:
    """The weights by the names and in the layout of PyTorch, as `WEIGHTS` has them."""
    return models.released_weights(about.model, jax.device_get(variables))


def push(
    folder: str | os.PathLike, names: Iterable[str], repository: str, public: bool
) -> str:
    """Uploads files of a folder to a repository of the Hugging Face hub.

    Args:
        folder: of `write`.
        names: of its files.
        repository: owner/name; it is created where there is none.
        public: whether a repository that is created can be read by anyone.

    Returns:
        the address of the repository.

    Raises:
        UserError: nobody is logged in, or the hub refuses.
    """
    # Deferred: the client takes a moment to load.
    import huggingface_hub
    from huggingface_hub import errors

    client = huggingface_hub.HfApi(library_name="gptfl-jax")
    try:
        url = client.create_repo(repository, private=not public, exist_ok=True)
        client.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=list(names),
            commit_message="Export of gptfl-jax",
        )
    except errors.LocalTokenNotFoundError as error:
        raise UserError(
            f"{repository}: log in to the hub first, with `hf auth login`"
        ) from error
    except Exception as error:  # what the client's transport raises is its own
        raise UserError(
            f"{repository}: the hub did not take it ({user_files.brief(error)}); the "
            f"files are in {folder}. Log in with `hf auth login`, with a token that "
            "may write, and try again"
        ) from error
    return str(url)


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
    return {**config, SECTION: about.content()}


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
        about = description.read(path, remedy, model, section=SECTION)
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
