"""ConvNet: the small network of the GPT-FL paper (arXiv 2306.02210)."""

import flax.linen as nn
import jax
from flax.linen.initializers import he_normal
from jaxtyping import Array, Float

from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, GroupNorm, InstanceNorm, avg_pool

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
    """`depth` x [conv 3x3, norm, relu, average pool 2], then a linear layer.

    With the default options on 32x32 RGB and 10 classes it has 320,010 parameters.
    Any picture at least 2^depth pixels high and wide will do; odd rows and columns
    are dropped by the pools, as in the original.

    Attributes:
        num_classes: outputs.
        width: channels of every convolution.
        depth: number of blocks.
        norm: "instance", "group" (32 groups, or as many as `width` allows) or "none".
    """

    num_classes: int
    width: int = 128
    depth: int = 3
    norm: str = "instance"

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; nothing in it depends on `train` or `mask`."""
        height, width = inputs.shape[1:3]
        if min(height, width) < 2**self.depth:
            raise UserError(
                f"config.model.options.depth = {self.depth}: pictures of "
                f"{width}x{height} pixels can be halved fewer times"
            )
        x = inputs
        for i in range(self.depth):
            x = Conv(self.width, (3, 3), kernel_init=he_normal(), name=f"conv{i}")(x)
            if self.norm == "instance":
                x = InstanceNorm(epsilon=1e-5, name=f"norm{i}")(x)
            elif self.norm == "group":
                groups = min(32, self.width)
                x = GroupNorm(groups, epsilon=1e-5, name=f"norm{i}")(x)
            elif self.norm != "none":
                raise UserError(
                    f"config.model.options.norm = {self.norm!r}: "
                    "takes instance, group or none"
                )
            x = avg_pool(jax.nn.relu(x), 2)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.num_classes, name="classifier")(x)
