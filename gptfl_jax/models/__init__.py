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
`load_weights` reads such files, and `released_weights` is what one would hold.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import PyTree

from gptfl_jax import choices, families
from gptfl_jax.released import classifiers


def create(name: str, num_classes: int, **options) -> nn.Module:
    """`Model(num_classes, **options)` of the module `gptfl_jax.models.<name>`.

    Args:
        name: of the module; or of one of your own, as `my_package.my_file` or
            `path/to/file.py`.

    Raises:
        UserError: no such module, or options the model does not take.
    """
    return choices.bind(families.MODEL, name, options, num_classes=num_classes)


def load_weights(
    name: str, variables: dict[str, PyTree], path: str | os.PathLike
) -> tuple[dict[str, Any], bool]:
    """Weights that a file releases for the model of this name, and whether all are.

    Of a file for other classes the head, the layer `classifier`, is left out: it stays
    what it is in `variables`.

    Args:
        name: as in `create`.
        variables: of the model, such as its `init` gives.
        path: a `.pth`, `.bin` or `.safetensors` file, read without torch.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    weights = classifiers.read(path, _names(name))
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


def _names(name):
    module = sys.modules[choices.find(families.MODEL, name).__module__]
    tables = (getattr(module, table, {}) for table in ("RELEASED", "FLATTENED"))
    return classifiers.Names(*tables)
