"""Vision transformers (arXiv 2010.11929; tiny and small: DeiT, arXiv 2012.12877).

Released weights are read by `read_weights`: torchvision's of ViT-B/16, and those of
timm's names, as DeiT's.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import normal, truncated_normal
from jaxtyping import Array, Float, PyTree

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, LayerNorm, torch_uniform
from gptfl_jax.released import classifiers, weight_files

_LAYER = "encoder.layers.encoder_layer_*"
RELEASED = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj": "patch_embed.proj",
    f"{_LAYER}.ln_1": "blocks.*.norm1",
    f"{_LAYER}.self_attention.in_proj_weight": "blocks.*.attn.qkv.weight",
    f"{_LAYER}.self_attention.in_proj_bias": "blocks.*.attn.qkv.bias",
    f"{_LAYER}.self_attention.out_proj": "blocks.*.attn.proj",
    f"{_LAYER}.ln_2": "blocks.*.norm2",
    f"{_LAYER}.mlp.0": "blocks.*.mlp.fc1",
    f"{_LAYER}.mlp.3": "blocks.*.mlp.fc2",
    f"{_LAYER}.mlp.linear_1": "blocks.*.mlp.fc1",  # in files of its first releases
    f"{_LAYER}.mlp.linear_2": "blocks.*.mlp.fc2",
    "encoder.ln": "norm",
    "heads.head": "classifier",
    "head": "classifier",
}
"""torchvision's names of our layers, which are timm's but for the last."""

# Width and heads.
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}

_DEIT = "https://dl.fbaipublicfiles.com/deit/deit_"
IMAGENET = {
    address: {"size": size, "patch": 16, "depth": 12}
    for size, address in {
        "tiny": f"{_DEIT}tiny_patch16_224-a1311bcf.pth#sha256=a1311bcf",
        "small": f"{_DEIT}small_patch16_224-cd65a155.pth#sha256=cd65a155",
        "base": weight_files.TORCHVISION + "vit_b_16-c867db91.pth",
    }.items()
}
"""DeiT's and torchvision's files for the classes of ImageNet, and their options."""

_EPSILON = 1e-6
_initial = truncated_normal(0.02)


def _dense(features, name):
    return Dense(features, kernel_init=_initial, name=name)


class Attention(nn.Module):
    """Self-attention of `heads` heads; one matrix makes queries, keys and values."""

    heads: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch tokens features"]:
        *rows, width = x.shape
        qkv = _dense(3 * width, "qkv")(x).reshape(*rows, 3, self.heads, -1)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        x = jax.nn.dot_product_attention(query, key, value)
        return _dense(width, "proj")(x.reshape(*rows, width))


class Perceptron(nn.Module):
    """Two linear layers, the first four times as wide, with a GELU between them."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens features"]
    ) -> Float[Array, "batch tokens features"]:
        width = x.shape[-1]
        x = jax.nn.gelu(_dense(4 * width, "fc1")(x), approximate=False)
        return _dense(width, "fc2")(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens features"], train: bool
    ) -> Float[Array, "batch tokens features"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x += drop(
            Attention(self.heads, name="attn")(LayerNorm(_EPSILON, name="norm1")(x))
        )
        return x + drop(Perceptron(name="mlp")(LayerNorm(_EPSILON, name="norm2")(x)))


class PatchEmbedding(nn.Module):
    """A vector for every square of `patch` x `patch` pixels."""

    width: int
    patch: int

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns features"]:
        window = (self.patch, self.patch)
        start = torch_uniform(self.patch**2 * inputs.shape[-1])
        return Conv(
            self.width,
            window,
            window,
            padding=0,
            kernel_init=start,
            bias_init=start,
            name="proj",
        )(inputs)


class Model(nn.Module):
    """Squares of pixels and a class token through a transformer; the token decides.

    5,717,416, 22,050,664 and 86,567,656 parameters at the sizes tiny, small and base
    for 224x224 RGB, patches of 16 and 1,000 classes.

    Attributes:
        num_classes: outputs.
        size: "tiny", "small" or "base": 192, 384 or 768 wide, a head for every 64.
        patch: pixels along each side of a square: 16 for pictures of 224 pixels, 4 for
            those of 32.
        depth: blocks.
        dropout: share of what each block adds that is dropped in training.
    """

    num_classes: int
    size: Literal["tiny", "small", "base"] = "tiny"
    patch: rules.PositiveCount = 16
    depth: rules.PositiveCount = 12
    dropout: rules.ProperFraction = 0.0

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Logits. Position embeddings of pictures of another size are interpolated."""
        height, columns = inputs.shape[1:3]
        if height % self.patch or columns % self.patch:
            raise UserError(
                f"config.model.options.patch = {self.patch}: pictures of "
                f"{columns}x{height} pixels cannot be cut into such squares"
            )
        width, heads = _SIZES[self.size]
        x = PatchEmbedding(width, self.patch, name="patch_embed")(inputs)
        grid = x.shape[1:3]
        x = x.reshape(x.shape[0], -1, width)
        token = self.param("cls_token", normal(1e-6), (1, 1, width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, width)), x], 1)
        if self.is_initializing():
            positions = self.param("pos_embed", _initial, (1, x.shape[1], width))
        else:
            positions = interpolated(self.get_variable("params", "pos_embed"), grid)
        x = nn.Dropout(self.dropout, deterministic=not train)(x + positions)
        for i in range(self.depth):
            x = Block(heads, self.dropout, name=f"blocks_{i}")(x, train)
        x = LayerNorm(_EPSILON, name="norm")(x)[:, 0]
        return _dense(self.num_classes, "classifier")(x)


def interpolated(
    positions: Float[Array, "1 tokens features"], grid: tuple[int, int]
) -> Float[Array, "1 new_tokens features"]:
    """Position embeddings for another number of squares, by cubic interpolation.

    Args:
        positions: of the class token, then of a square of squares, row by row; other
            shapes only where they are as many as asked for.
        grid: rows and columns of squares to have.
    """
    count = positions.shape[1] - 1
    if count == grid[0] * grid[1]:
        return positions
    side = round(count**0.5)
    if side**2 != count:
        raise UserError(
            f"vit: position embeddings of {count} squares, which are no square "
            "themselves, cannot be interpolated: give pictures of the size they had"
        )
    token, squares = positions[:, :1], positions[:, 1:]
    squares = squares.reshape(1, side, side, -1)
    squares = jax.image.resize(squares, (1, *grid, squares.shape[-1]), "cubic")
    return jnp.concatenate([token, squares.reshape(1, grid[0] * grid[1], -1)], 1)


def fitted(
    weights: Mapping[str, np.ndarray], variables: Mapping[str, PyTree]
) -> dict[str, np.ndarray]:
    """A file's weights with position embeddings as many as a model's.

    Args:
        weights: by our names.
        variables: of the model, or their shapes.
    """
    given, wanted = weights.get("pos_embed"), variables["params"]["pos_embed"].shape
    side = round((wanted[1] - 1) ** 0.5)
    if given is None or given.ndim != 3 or side**2 != wanted[1] - 1:
        return dict(weights)
    positions = interpolated(jnp.asarray(given), (side, side))
    return {**weights, "pos_embed": np.asarray(positions)}


def read_weights(path: str | os.PathLike) -> tuple[Model, dict[str, Any]]:
    """The model that a file of torchvision's or timm's names holds, and its variables.

    The options follow from the weights. The file is a `.pth` or `.safetensors`, and is
    read without torch and without running what is in it.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    return classifiers.read_model(
        path,
        classifiers.Names(RELEASED),
        _described,
        "a ViT by torchvision's or timm's names",
    )


def _described(weights):
    width, channels, patch, _ = weights["patch_embed.proj.weight"].shape
    model = Model(
        num_classes=len(weights["classifier.weight"]),
        size=next(size for size, (each, _) in _SIZES.items() if each == width),
        patch=patch,
        depth=sum(name.endswith(".norm1.weight") for name in weights),
    )
    side = patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    return model, (side, side, channels)
