"""Released weights of classifiers, for the models of `gptfl_jax.models`."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gptfl_jax.released import hub, torch_weights

HEAD = "classifier"
"""The layer that makes the logits."""


def read(
    path: str | os.PathLike, names: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """The weights of a file, under the names that `torch_weights` gives ours.

    Args:
        path: a `.safetensors`, `.pth` or `.bin` file.
        names: the file's name of a layer -> ours, where they differ.

    Raises:
        UserError: the file is missing, damaged, unsafe or not one of weights.
    """
    names = names or {}
    found = {}
    for name, value in hub.read_weights(pathlib.Path(path).expanduser()).items():
        layer, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":  # momentum averages need no count
            found[f"{names.get(layer, layer)}.{leaf}"] = value
    return found


def norm_of(
    weights: Mapping[str, np.ndarray], layer: str
) -> Literal["batch", "group", "none"]:
    """The kind of norm that a layer is; of instance and group, which look alike, group.

    Args:
        layer: its name, as "bn1".
    """
    if f"{layer}.running_mean" in weights:
        return "batch"
    return "group" if f"{layer}.weight" in weights else "none"


def fill(
    variables: Mapping[str, PyTree],
    weights: Mapping[str, np.ndarray],
    source: str,
) -> tuple[dict[str, Any], bool]:
    """`variables` with a file's weights in place of their own, and whether all are.

    The head stays as it is where the file has none, or one of other classes.

    Args:
        variables: of a model, or their shapes.
        weights: from `read`.
        source: where they come from, for error messages.

    Raises:
        UserError: a weight is missing, left over or of another shape.
    """
    head = variables["params"][HEAD]
    given = weights.get(f"{HEAD}.weight")
    whole = given is not None and len(given) == head["kernel"].shape[-1]
    shapes = jax.eval_shape(lambda x: x, variables)
    wanted = {name: dict(tree) for name, tree in shapes.items()}
    if not whole:
        del wanted["params"][HEAD]
        weights = {
            name: value
            for name, value in weights.items()
            if not name.startswith(f"{HEAD}.")
        }
    loaded = torch_weights.variables_from_torch(
        wanted, weights, source, described_by="config.model"
    )
    loaded = jax.tree.map(lambda x, to: np.asarray(x, to.dtype), loaded, wanted)
    if not whole:
        loaded["params"][HEAD] = head
    return loaded, whole


def variables_of(
    model: nn.Module,
    shape: tuple[int, ...],
    weights: Mapping[str, np.ndarray],
    source: str | os.PathLike,
) -> dict[str, Any]:
    """The variables of a model that a file's weights are all of.

    Args:
        shape: of one input.
        weights: from `read`.
        source: where they come from, for error messages.

    Raises:
        UserError: a weight is missing, left over or of another shape.
    """
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    )
    return fill(shapes, weights, os.fspath(source))[0]
