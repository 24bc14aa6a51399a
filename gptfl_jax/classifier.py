"""A trained classifier with all that it takes to use it, on arrays and on files."""

import concurrent.futures
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
    convolution,
    description,
    evaluation,
    exports,
    training,
)
from gptfl_jax.data import audio, images
from gptfl_jax.description import Description
from gptfl_jax.errors import UserError

PathLike = str | os.PathLike[str]


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
        learner: the model with its input processing.
        variables: its weights.
        description: what else it is.
    """

    learner: training.Learner
    variables: training.Variables
    description: Description

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the logits."""
        return self.description.class_names

    @property
    def example(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The raw input of one example, without a batch axis."""
        return self.description.example

    @property
    def sounds(self) -> audio.FeatureSettings | None:
        """How recordings become inputs; None: the inputs are no sounds."""
        return self.description.sounds

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

    def read(
        self,
        paths: PathLike | Sequence[PathLike],
        broken: dict[int, str] | None = None,
    ) -> PyTree[np.ndarray]:
        """Pictures or recordings as the inputs that the model takes.

        Args:
            paths: of the files.
            broken: where given, a file that cannot be read is no error: its number and
                the reason are put here, and it is left out.

        Raises:
            UserError: a file that cannot be read, or inputs that are neither pictures
                nor sounds.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if self.sounds is not None:
            clips = [audio.Clip(pathlib.Path(path)) for path in paths]
            quiet = broken is not None
            return audio.extract(clips, self.sounds, broken=broken, quiet=quiet)
        shape = getattr(self.example, "shape", ())
        if len(shape) != 3 or shape[0] != shape[1]:
            raise UserError(
                f"{paths[0]}: this model takes inputs of shape {shape}, not square "
                "pictures: read the file yourself, and give the array"
            )

        def read_one(path):
            return images.read_picture(
                pathlib.Path(path), shape[0], shape[2], crop=True
            )

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            pictures = list(pool.map(read_one, paths))
        inputs = [np.zeros((0, *shape), np.uint8)]
        for number, (path, picture) in enumerate(zip(paths, pictures, strict=True)):
            if not picture.error:
                inputs.append(picture.pixels[None])
            elif broken is None:
                raise UserError(f"{path}: {picture.error}")
            else:
                broken[number] = picture.error
        return np.concatenate(inputs)

    def save_weights(self, folder: PathLike) -> None:
        """Writes weights and config to a folder, for PyTorch and for `load_classifier`.

        Of a model that torchvision has, `load_state_dict` takes them; what the files
        hold is in `gptfl_jax/exports.py`.

        Raises:
            UserError: the model was given as an object, not by name.
        """
        exports.write(folder, self.description, self.variables)

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

        Raises:
            UserError: the model takes the number of examples to be a fixed one.
        """
        artifacts.write_bytes(path, self.exported(platforms))

    def exported(self, platforms: Sequence[str] = ("cpu", "cuda", "tpu")) -> bytes:
        """The content of the file of `export`."""
        (batch,) = jax.export.symbolic_shape("batch")
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch, *leaf.shape), leaf.dtype),
            self.example,
        )
        program = jax.export.export(
            jax.jit(
                lambda inputs: jax.nn.softmax(
                    self.learner.predict(self.variables, inputs)
                )
            ),
            platforms=tuple(platforms),
        )
        try:
            with convolution.form("lax"):
                exported = program(arguments)
        except TypeError as error:
            if "_DimExpr" not in str(error):  # JAX's number of any size
                raise
            raise UserError(
                f"{self.description.model or 'the model'}: is exported for any number "
                "of examples: write inputs.shape[0] in place of len(inputs)"
            ) from error
        return bytes(exported.serialize())


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
    """The classifier that a run of stage 2 or 3 has trained, or that was exported.

    Args:
        folder: of the run, as `runs/digits/federated/fedavg-random-s0`, or one that
            `federated.export` or `Classifier.save_weights` has written.
        step: round or epoch of a checkpoint, or "best"; None: the last.
        model: file or module of a model of your own. It is not taken from the folder's
            records, which anyone may have written: a file that they name is not run.

    Raises:
        UserError: the folder holds no such run, or is damaged; a model of your own that
            `model` does not name.
    """
    folder = pathlib.Path(folder)
    if exports.is_export(folder) and not (folder / "checkpoints").exists():
        about, learner, variables = exports.read(folder, model)
        return Classifier(learner, jax.device_put(variables), about)
    artifacts.require(folder / "checkpoints", "python -m federated.simulate ...")
    remedy = "start the run again: it is written anew"
    try:
        about = description.read(folder / description.FILE, remedy, model)
    except FileNotFoundError:
        raise UserError(f"{folder}: has no {description.FILE}; {remedy}") from None
    learner = description.make_learner(about)
    template = {"variables": jax.eval_shape(learner.init, jax.random.key(0))}
    saved = artifacts.restore_checkpoint(folder / "checkpoints", template, step)
    return Classifier(learner, saved["variables"], about)
