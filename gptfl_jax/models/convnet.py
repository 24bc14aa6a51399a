"""ConvNet: the small network of the GPT-FL paper (arXiv 2306.02210)."""

from typing import Literal

import flax.linen as nn
import jax
from flax.linen.initializers import he_normal
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, GroupNorm, LayerNorm, avg_pool, max_pool, norm

_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "leaky_relu": jax.nn.leaky_relu,
    "swish": jax.nn.swish,
}
_POOLS = {"average": avg_pool, "max": max_pool, "none": lambda x, window: x}

RELEASED = {
    theirs: ours
    for i in range(16)
    for theirs, ours in (
        (f"features.{4 * i}", f"conv{i}"),
        (f"features.{4 * i + 1}", f"norm{i}"),
    )
}
"""The original's names of our layers, where they differ."""
FLATTENED = {"classifier": "conv0"}
"""The classifier takes a picture of as many channels as `conv0` makes."""


class Model(nn.Module):
    """`depth` x [conv 3x3, norm, activation, pool 2], then a linear layer.

    With the default options on 32x32 RGB and 10 classes it has 320,010 parameters.
    Any picture at least 2^depth pixels high and wide will do; odd rows and columns
    are dropped by the pools, as in the original.

    Attributes:
        num_classes: outputs.
        width: channels of every convolution.
        depth: number of blocks.
        norm: "instance", "group", "batch", "layer" (all numbers of an example
            together, with a scale for each) or "none".
        groups: of group normalisation, or as many as `width` allows. The original has
            4 of them.
        activation: "relu", "sigmoid", "leaky_relu" (a hundredth below 0) or "swish".
        pool: "average", "max" or "none".
        padding: of the first convolution. The original has 3 for grey pictures, which
            makes 32 pixels of 28.
    """

    num_classes: int
    width: rules.PositiveCount = 128
    depth: rules.PositiveCount = 3
    norm: Literal["instance", "group", "batch", "layer", "none"] = "instance"
    groups: rules.PositiveCount = 32
    activation: Literal["relu", "sigmoid", "leaky_relu", "swish"] = "relu"
    pool: Literal["average", "max", "none"] = "average"
    padding: rules.Count = 1

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        height, width = (n + 2 * self.padding - 2 for n in inputs.shape[1:3])
        if self.pool != "none" and min(height, width) < 2**self.depth:
            raise UserError(
                f"config.model.options.depth = {self.depth}: pictures of "
                f"{width}x{height} pixels can be halved fewer times"
            )
        x = inputs
        for i in range(self.depth):
            x = Conv(
                self.width,
                (3, 3),
                padding=1 if i else self.padding,
                kernel_init=he_normal(),
                name=f"conv{i}",
            )(x)
            x = self._normalised(x, train, mask, f"norm{i}")
            x = _POOLS[self.pool](_ACTIVATIONS[self.activation](x), 2)
        x = x.reshape(x.shape[0], -1)
        return Dense(self.num_classes, name="classifier")(x)

    def _normalised(self, x, train, mask, name):
        if self.norm == "layer":
            return LayerNorm(1e-5, axes=3, name=name)(x)
        if self.norm == "group":
            return GroupNorm(min(self.groups, self.width), 1e-5, name=name)(x)
        return norm(x, self.norm, train, mask, name)
