"""Downstream classifiers: one family a module, each with a `Model`.

`Model(num_classes, **options)` is a Linen module, called `model(inputs, train, mask)`.
`inputs` are processed (float pictures [batch, height, width, channels], or whatever
pytree the family takes, such as features and lengths) and the result is logits. `train`
switches dropout (rng "dropout") and batch statistics (collection "batch_stats"); `mask`
[batch], or None, is 0 for padding rows, which must not enter statistics over the batch.
The layer that makes the logits is called `classifier`; what it is given counts as the
representation of an example (`Learner.represent`).

Layers are called as in the files of released weights, with `_0` for `.0`
(`released.torch_weights`). Where the names differ, the file's `RELEASED` maps theirs to
ours, and where the layout does, `FLATTENED` says so (`released.classifiers`).
A function `fitted` makes weights of files for other inputs fit. `load_weights` reads
such files, and `released_weights` is what one would hold. Where there are files for the
classes of ImageNet, `IMAGENET` has their addresses and of which options they are.
"""

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from gptfl_jax import choices, families
from gptfl_jax.errors import UserError
from gptfl_jax.released import classifiers, gptfl, weight_files


def create(name: str, num_classes: int, **options) -> nn.Module:
    """`Model(num_classes, **options)` of the module `gptfl_jax.models.<name>`.

    Args:
        name: of the module; or of one of your own, as `my_package.my_file` or
            `path/to/file.py`.

    Raises:
        UserError: no such module, or options the model does not take.
    """
    return choices.bind(families.MODEL, name, options, num_classes=num_classes)


def stands_for_weights(text: str) -> bool:
    """Whether a text looks like one that `find_weights` takes, be it there or not."""
    named = text == "imagenet" or text in gptfl.RELEASES
    return named or weight_files.stands_for_file(text)


def find_weights(weights: str | os.PathLike, name: str, **options) -> pathlib.Path:
    """The file of weights that a text stands for, downloaded where that is needed.

    Args:
        weights: "imagenet" for the file that torchvision releases for the model; the
            name of one that GPT-FL's authors do (`gptfl.RELEASES`); or a file, an
            address or a file in a repository (`weight_files.find`).
        name, options: of the model, as in `create`.

    Raises:
        UserError: there is no such file, or it cannot be had.
    """
    if weights in gptfl.RELEASES:
        release = gptfl.RELEASES[weights]
        if name != release.model or not _has(name, options, release.options):
            raise UserError(
                f"{weights}: of another model than config.model; take "
                f"{gptfl.fields(release)}"
            )
        return gptfl.find(weights)
    if weights != "imagenet":
        return weight_files.find(weights)
    files = getattr(_module(name), "IMAGENET", {})
    for address, needed in files.items():
        if _has(name, options, needed):
            return weight_files.find(address)
    known = "; ".join(
        ", ".join(f"{option}={value}" for option, value in needed.items())
        for needed in files.values()
    )
    raise UserError(
        f"config.model.weights = 'imagenet': there are none for {name} with these "
        f"options; there are for {known or 'other models'}"
    )


def load_weights(
    name: str, variables: dict[str, PyTree], path: str | os.PathLike
) -> tuple[dict[str, Any], bool]:
    """Weights that a file releases for the model of this name, and whether all are.

    Of a file for other classes the head, the layer `classifier`, is left out: it stays
    what it is in `variables`.

    Args:
        name: as in `create`.
        variables: of the model, such as its `init` gives.
        path: a `.pth`, `.bin` or `.safetensors` file, read without torch; or its
            address or place in a repository (`weight_files.find`).

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    weights = classifiers.read(path, _names(name))
    fitted = getattr(_module(name), "fitted", None)
    if fitted is not None:
        weights = fitted(weights, variables)
    return classifiers.fill(variables, weights, os.fspath(path))


def released_weights(
    name: str, variables: Mapping[str, PyTree]
) -> dict[str, np.ndarray]:
    """Weights by the names and in the layout of the files that `load_weights` takes.

    Args:
        name: as in `create`.
        variables: of the model.

    Raises:
        UserError: no such module.
    """
    return classifiers.released_weights(variables, _names(name))


def _has(name, options, needed):
    """Whether a model has these values of options."""
    model = create(name, 1000, **options)
    return all(getattr(model, option) == value for option, value in needed.items())


def _module(name):
    return sys.modules[choices.find(families.MODEL, name).__module__]


def _names(name):
    module = _module(name)
    tables = (getattr(module, table, {}) for table in ("RELEASED", "FLATTENED"))
    return classifiers.Names(*tables)
