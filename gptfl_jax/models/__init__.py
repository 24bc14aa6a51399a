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
ours; `load_weights` reads such files.
"""

import os
import sys
from typing import Any

import flax.linen as nn
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
    module = sys.modules[choices.find(families.MODEL, name).__module__]
    weights = classifiers.read(path, getattr(module, "RELEASED", None))
    return classifiers.fill(variables, weights, os.fspath(path))
