"""Released weights of classifiers, for the models of `gptfl_jax.models`.

What a family's files call its layers is a table, `RELEASED` of its module: their name
to ours, `*` for a number that both have. A name is that of a layer, or of one weight.
Where several of theirs are for one of ours, files are written with the first.
`FLATTENED` names the layers that take a flattened picture, channel by channel in the
files and pixel by pixel in ours, each with a layer that has as many outputs as that
picture has channels. Both tables serve in both directions.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gptfl_jax.errors import UserError
from gptfl_jax.released import hub, torch_weights, weight_files

HEAD = "classifier"
"""The layer that makes the logits."""


class Names(NamedTuple):
    """A family's tables, which the head of this file describes."""

    released: Mapping[str, str] = {}
    flattened: Mapping[str, str] = {}


NO_NAMES = Names()

# torch's of several GPUs and of compiled models, and that of GPT-FL's ResNets.
_WRAPPERS = ("module.", "_orig_mod.", "backbone.")


def read(path: str | os.PathLike, names: Names = NO_NAMES) -> dict[str, np.ndarray]:
    """The weights of a file, under the names that `torch_weights` gives ours.

    Args:
        path: a `.safetensors`, `.pth` or `.bin` file; or what else `weight_files.find`
            takes.
        names: of the family that the file is of.

    Raises:
        UserError: the file is missing, damaged, unsafe or not one of weights.
    """
    found = {}
    weights = _unwrapped(hub.read_weights(weight_files.find(path)))
    for name, value in weights.items():
        # Running means that follow a momentum need no count.
        if not name.endswith("num_batches_tracked"):
            found[_renamed(name, names.released)] = value
    return _reordered(found, names, theirs=True)


def released_weights(
    variables: Mapping[str, PyTree], names: Names = NO_NAMES
) -> dict[str, np.ndarray]:
    """The inverse of `read` and `fill`: by the files' names and in their layout.

    Args:
        variables: of a model.
        names: of its family.
    """
    weights = torch_weights.variables_to_torch(variables)
    weights = _reordered(weights, names, theirs=False)
    back = {ours: theirs for theirs, ours in reversed(names.released.items())}
    return {_renamed(name, back): value for name, value in weights.items()}


def _unwrapped(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights without the name that a wrapper of the whole model puts before theirs."""
    for wrapper in _WRAPPERS:
        if weights and all(name.startswith(wrapper) for name in weights):
            return {
                name.removeprefix(wrapper): value for name, value in weights.items()
            }
    return weights


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """The other side's name of a weight, which the table has, or its layer."""
    layer, _, leaf = name.rpartition(".")
    for known, rest in ((name, ""), (layer, f".{leaf}")):
        for old, new in table.items():
            found = re.fullmatch(re.escape(old).replace(r"\*", r"(\d+)"), known)
            if found:
                numbers = iter(found.groups())
                return re.sub(r"\*", lambda _, each=numbers: next(each), new) + rest
    return name


def _reordered(weights, names, theirs):
    """Weights with the inputs of `names.flattened` in the other side's order."""
    weights = dict(weights)
    for layer, before in names.flattened.items():
        name, channels = f"{layer}.weight", len(weights.get(f"{before}.weight", ()))
        value = weights.get(name)
        # What does not fit is for whoever uses the weights to say.
        if value is not None and channels and value.shape[-1] % channels == 0:
            order = (channels, -1) if theirs else (-1, channels)
            value = value.reshape(len(value), *order).swapaxes(1, 2)
            weights[name] = value.reshape(len(value), -1)
    return weights


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


def read_model(
    path: str | os.PathLike,
    names: Names,
    describe: Callable[[Mapping[str, np.ndarray]], tuple[nn.Module, tuple[int, ...]]],
    family: str,
) -> tuple[Any, dict[str, Any]]:
    """The model that a file's weights are all of, and its variables.

    Args:
        path: a `.safetensors`, `.pth` or `.bin` file.
        names: of the family.
        describe: weights, from `read` -> the model and the shape of one input. What it
            raises as it looks for them says that the file is of another model.
        family: what the file should be, as "a VGG by torchvision's names".

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    weights = read(path, names)
    try:
        model, shape = describe(weights)
    except (LookupError, ValueError, StopIteration) as error:
        raise UserError(
            f"{os.fspath(path)}: not {family}: name another file"
        ) from error
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    )
    return model, fill(shapes, weights, os.fspath(path))[0]
