"""Linen parameters from and to the weights of a PyTorch checkpoint.

A module here carries the name of its PyTorch twin, with `_0` for `.0`; so a weight's
name follows from the parameter's path and its layout from the parameter's kind, and no
table of names is needed.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from gptfl_jax.errors import UserError

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Submodules whose own name ends in a number, which is no index of a list.
_NOT_INDEXED = {"linear_1", "linear_2", "wi_0", "wi_1"}


def torch_name(path: tuple[str, ...]) -> str:
    """The PyTorch name of the parameter at `path`: `a_0/b/kernel` is `a.0.b.weight`."""
    *modules, leaf = path
    parts = [
        name if name in _NOT_INDEXED else re.sub(r"_(\d+)$", r".\1", name)
        for name in modules
    ]
    return ".".join([*parts, _LEAVES.get(leaf, leaf)])


def layers(shapes: PyTree[jax.ShapeDtypeStruct]) -> list[str]:
    """The PyTorch names of the dense and convolutional layers of a network."""
    return [
        torch_name(path).removesuffix(".weight")
        for path in traverse_util.flatten_dict(shapes)
        if path[-1] == "kernel"
    ]


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a PyTorch checkpoint that hold `params`."""
    weights = {}
    for path, value in traverse_util.flatten_dict(params).items():
        value = np.asarray(value)
        if path[-1] == "kernel":  # [..., in, out] to [out, in, ...]
            axes = (value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
            value = np.ascontiguousarray(value.transpose(axes))
        elif _of_a_picture(path, value.ndim):
            value = np.ascontiguousarray(np.moveaxis(value, -1, 0))
        weights[torch_name(path)] = value
    return weights


def from_torch(
    shapes: PyTree[jax.ShapeDtypeStruct],
    weights: Mapping[str, Array | np.ndarray],
    source: str,
    current_name: Callable[[str], str | None] = lambda name: name,
    dtype: DTypeLike | None = None,
    place: Callable[[np.ndarray], Any] = lambda value: value,
    described_by: str = "the config.json beside it",
) -> dict[str, Any]:
    """Parameters that hold the weights of a PyTorch checkpoint.

    Args:
        shapes: the parameters' shapes, from `jax.eval_shape` of the module's `init`.
        weights: the checkpoint's weights by name.
        source: where they come from, for error messages.
        current_name: today's name of a weight of an older release, None for entries
            that are no weights.
        dtype: of the parameters; by default as in the checkpoint.
        place: puts each parameter where it shall be, before the next weight is read.
        described_by: what says which weights there are, for error messages.

    Raises:
        UserError: if a weight is missing, left over or of another shape.
    """
    # Names alone: reading a weight may take memory (`hub.open_weights`).
    found = {}
    for name in weights:
        current = current_name(name)
        if current is not None:
            found[current] = name
    expected = {path: torch_name(path) for path in traverse_util.flatten_dict(shapes)}
    missing = sorted(set(expected.values()) - set(found))
    unknown = sorted(set(found) - set(expected.values()))
    for names, complaint in ((missing, "has no"), (unknown, "has unknown")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{source} {complaint} weights {', '.join(names[:3])}{more}: it does "
                f"not belong to {described_by}; download the model again or name "
                "another"
            )
    params = {}
    for path, struct in traverse_util.flatten_dict(shapes).items():
        value = np.asarray(weights[found[expected[path]]])
        value = _layout(path, value, struct.shape, source, described_by)
        if dtype is not None:
            value = value.astype(jnp.dtype(dtype), copy=False)
        params[path] = place(value)
    return traverse_util.unflatten_dict(params)


def on_device(value: np.ndarray) -> Array:
    """`value` on the first device, with no memory of the host held any longer."""
    return jax.block_until_ready(jnp.asarray(value))


def variables_from_torch(
    shapes: Mapping[str, PyTree[jax.ShapeDtypeStruct]],
    weights: Mapping[str, Array | np.ndarray],
    source: str,
    current_name: Callable[[str], str | None] = lambda name: name,
    dtype: DTypeLike | None = None,
    place: Callable[[np.ndarray], Any] = lambda value: value,
    described_by: str = "the config.json beside it",
) -> dict[str, Any]:
    """`from_torch` for all collections of a module, as `params` and `batch_stats`.

    Args:
        dtype: of the parameters; the other collections stay as in the checkpoint.
        place, described_by: as in `from_torch`.
    """
    owner = {
        path: collection
        for collection, tree in shapes.items()
        for path in traverse_util.flatten_dict(tree)
    }
    merged = {}
    for tree in shapes.values():
        merged |= traverse_util.flatten_dict(tree)
    merged = traverse_util.unflatten_dict(merged)
    loaded = from_torch(
        merged, weights, source, current_name, place=place, described_by=described_by
    )
    variables: dict[str, dict] = {collection: {} for collection in shapes}
    for path, value in traverse_util.flatten_dict(loaded).items():
        if dtype is not None and owner[path] == "params":
            value = value.astype(jnp.dtype(dtype), copy=False)
        variables[owner[path]][path] = value
    return {
        collection: traverse_util.unflatten_dict(flat)
        for collection, flat in variables.items()
    }


def variables_to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`to_torch` for all collections of a module."""
    weights = {}
    for tree in variables.values():
        weights |= to_torch(tree)
    return weights


def _of_a_picture(path, rank):
    """Whether it is of a norm with a number for each pixel and channel."""
    return path[-1] in ("scale", "bias") and rank == 3


def _layout(path, value, shape, source, described_by):
    name, original = torch_name(path), value.shape
    if path[-1] == "kernel":
        # A matrix and a 1x1 convolution are the same; files hold one or the other.
        if len(shape) == 2 and value.ndim > 2 and set(value.shape[2:]) == {1}:
            value = value.reshape(value.shape[:2])
        elif len(shape) > 2 and value.ndim == 2 and set(shape[:-2]) == {1}:
            value = value.reshape(*value.shape, *shape[:-2])
        value = value.transpose(*range(2, value.ndim), 1, 0)
    elif _of_a_picture(path, value.ndim):
        value = np.moveaxis(value, 0, -1)
    if value.shape != shape:
        raise UserError(
            f"{source}: {name} has shape {original}, which does not fit "
            f"{described_by}: download the model again or name another"
        )
    return value
