"""A trained classifier with all that it takes to use it, on arrays and on files."""

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, PyTree

from gptfl_jax import (
    artifacts,
    choices,
    convolution,
    evaluation,
    models,
    training,
)
from gptfl_jax.data import audio, images
from gptfl_jax.data.datasets import Source
from gptfl_jax.errors import UserError

PathLike = str | os.PathLike[str]

FILE = "classifier.json"
"""In the folder of a run: what `load` needs besides the weights."""

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
        model: name, as `config.model.name`.
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

    def save(self, folder: PathLike) -> None:
        """Writes it to `classifier.json` of a run's folder."""
        content = {
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
        artifacts.write_json(pathlib.Path(folder) / FILE, content)


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


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
        learner: the model with its input processing.
        variables: its weights.
        class_names: in the order of the logits.
        example: the raw input of one example, without a batch axis.
        sounds: how recordings become inputs; None: the inputs are no sounds.
    """

    learner: training.Learner
    variables: training.Variables
    class_names: tuple[str, ...]
    example: PyTree[jax.ShapeDtypeStruct]
    sounds: audio.FeatureSettings | None = None

    def probabilities(
        self, inputs: PyTree, batch_size: int = 512
    ) -> Float32[np.ndarray, "examples classes"]:
        """Of every class, for raw inputs as the model was trained on, or for files.

        Args:
            inputs: arrays whose first axis is the examples (uint8 pictures [examples,
                height, width, channels]; of sounds features and lengths), or the path
                of a picture or recording, or a list of paths.
            batch_size: examples at once.
        """
        if _are_paths(inputs):
            inputs = self.read(inputs)
        count = len(jax.tree.leaves(inputs)[0])
        parts = [np.zeros((0, len(self.class_names)), np.float32)]
        size = min(batch_size, max(count, 1))
        for start in range(0, count, size):
            # One compiled shape: the last batch reaches back to be full.
            begin = max(0, min(start, count - size))
            batch = jax.tree.map(lambda x, b=begin: x[b : b + size], inputs)
            rows = np.asarray(_probabilities(self.learner, self.variables, batch))
            parts.append(rows[start - begin :].astype(np.float32))
        return np.concatenate(parts)

    def predict(
        self, inputs: PyTree, batch_size: int = 512
    ) -> Int32[np.ndarray, " examples"]:
        """The most probable class of each example; see `probabilities`."""
        return self.probabilities(inputs, batch_size).argmax(1).astype(np.int32)

    def evaluate(
        self, inputs: PyTree, labels: Int32[np.ndarray, " examples"]
    ) -> evaluation.Metrics:
        """Accuracy, macro F1 and loss on labelled examples."""
        return evaluation.evaluate(
            self.learner, self.variables, inputs, labels, len(self.class_names)
        )

    def read(self, paths: PathLike | Sequence[PathLike]) -> PyTree[np.ndarray]:
        """Pictures or recordings as the inputs that the model takes.

        Raises:
            UserError: a file that cannot be read, or inputs that are neither pictures
                nor sounds.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if self.sounds is not None:
            clips = [audio.Clip(pathlib.Path(path)) for path in paths]
            return audio.extract(clips, self.sounds)
        shape = getattr(self.example, "shape", ())
        if len(shape) != 3 or shape[0] != shape[1]:
            raise UserError(
                f"{paths[0]}: this model takes inputs of shape {shape}, not square "
                "pictures: read the file yourself, and give the array"
            )
        pictures = [
            images.read_picture(pathlib.Path(path), shape[0], shape[2], crop=True)
            for path in paths
        ]
        for path, picture in zip(paths, pictures, strict=True):
            if picture.error:
                raise UserError(f"{path}: {picture.error}")
        return np.stack([picture.pixels for picture in pictures])

    def export(
        self,
        path: PathLike,
        platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    ) -> None:
        """Writes the classifier as one file that needs no more than JAX.

            predict = jax.export.deserialize(bytearray(open(path, "rb").read())).call
            probabilities = predict(inputs)  # any number of examples

        The file holds the weights and the program (StableHLO) from raw inputs to
        probabilities.
        """
        (batch,) = jax.export.symbolic_shape("batch")
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype),
            self.example,
        )
        with convolution.form("lax"):
            exported = jax.export.export(
                jax.jit(
                    lambda inputs: jax.nn.softmax(
                        self.learner.predict(self.variables, inputs)
                    )
                ),
                platforms=tuple(platforms),
            )(arguments)
        artifacts.write_bytes(path, bytes(exported.serialize()))


@functools.partial(jax.jit, static_argnames="learner")
def _probabilities(learner, variables, batch):
    return jax.nn.softmax(learner.predict(variables, batch).astype(jnp.float32))


def _are_paths(inputs: Any) -> bool:
    if isinstance(inputs, list) and inputs:
        inputs = inputs[0]
    return isinstance(inputs, str | os.PathLike)


def load_classifier(
    folder: PathLike, *, step: int | str | None = None, model: str = ""
) -> Classifier:
    """The classifier that a run of stage 2 or 3 has trained.

    Args:
        folder: of the run, as `runs/digits/federated/fedavg-random-s0`.
        step: round or epoch of a checkpoint, or "best"; None: the last.
        model: file or module of a model of your own. It is not taken from the folder's
            records, which anyone may have written: a file that they name is not run.

    Raises:
        UserError: the folder holds no such run, or is damaged; a model of your own that
            `model` does not name.
    """
    folder = pathlib.Path(folder)
    artifacts.require(folder / "checkpoints", "python -m federated.simulate ...")
    remedy = "start the run again: it is written anew"
    try:
        content = artifacts.read_json(folder / FILE, _SHAPE, remedy)
    except FileNotFoundError:
        raise UserError(f"{folder}: has no {FILE}; {remedy}") from None
    name = model or content["model"]["name"]
    if not model and choices.is_own(name):
        raise UserError(
            f"{folder}: its model is {name!r}, code of your own. Say so to run it: "
            f"load_classifier(..., model={name!r})"
        )
    leaves = [
        jax.ShapeDtypeStruct(tuple(leaf["shape"]), np.dtype(leaf["dtype"]))
        for leaf in content["inputs"]
    ]
    sounds = content["sounds"]
    description = Description(
        name,
        content["model"]["options"],
        tuple(content["class_names"]),
        tuple(leaves) if len(leaves) > 1 else leaves[0],
        tuple(content["mean"]),
        tuple(content["std"]),
        audio.FeatureSettings(**sounds) if sounds else None,
    )
    learner = make_learner(description)
    template = {"variables": jax.eval_shape(learner.init, jax.random.key(0))}
    saved = artifacts.restore_checkpoint(folder / "checkpoints", template, step)
    return Classifier(
        learner,
        saved["variables"],
        description.class_names,
        description.example,
        description.sounds,
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
