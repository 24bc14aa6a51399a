"""Low-rank updates (arXiv 2106.09685) of a network's dense and convolutional layers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PRNGKeyArray, PyTree

from gptfl_jax.released import torch_weights


def init(key: PRNGKeyArray, params: PyTree, rank: int) -> dict[str, Any]:
    """Updates of every kernel, of value zero.

    A layer's rank is `rank`, but never more than its weight's. `down` is drawn, of the
    size that keeps the variance of its inputs; `up` is zero.
    """
    updates = {}
    for number, (path, value) in enumerate(_kernels(params).items()):
        fan_in = int(np.prod(value.shape[:-1]))
        size = min(rank, fan_in, value.shape[-1])
        down = jax.random.normal(
            jax.random.fold_in(key, number), (*value.shape[:-1], size)
        )
        updates["/".join(path)] = {
            "down": down / np.sqrt(fan_in),
            "up": jnp.zeros((size, value.shape[-1])),
        }
    return updates


def merge(params: PyTree, updates: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the updates added."""
    flat = dict(traverse_util.flatten_dict(params))
    for name, update in updates.items():
        path = tuple(name.split("/"))
        flat[path] = flat[path] + update["down"] @ update["up"]
    return traverse_util.unflatten_dict(flat)


def to_torch(updates: Mapping[str, Any], network: str) -> dict[str, np.ndarray]:
    """The weights of a LoRA file of `diffusers`; alpha is the rank."""
    weights = {}
    for name, update in updates.items():
        module = torch_weights.torch_name(tuple(name.split("/")))
        module = f"{network}.{module.removesuffix('.weight')}"
        down, up = (np.asarray(update[part]) for part in ("down", "up"))
        # [height, width, in, rank] to [rank, in, height, width]
        axes = (down.ndim - 1, down.ndim - 2, *range(down.ndim - 2))
        window = (1,) * (down.ndim - 2)
        weights[f"{module}.lora_A.weight"] = down.transpose(axes)
        weights[f"{module}.lora_B.weight"] = up.T.reshape(*up.T.shape, *window)
    return weights


def _kernels(params):
    flat = traverse_util.flatten_dict(params)
    return {path: value for path, value in flat.items() if path[-1] == "kernel"}
