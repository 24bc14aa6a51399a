"""ShuffleNet (arXiv 1707.01083) for 32x32 pictures, as the original has it."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gptfl_jax.nn import (
    Conv,
    Norm,
    avg_pool,
    channel_shuffle,
    dense,
    norm,
    torch_uniform,
)

RELEASED = {"classification_layer": "classifier"}
"""The original's names of our layers, where they differ."""

# Channels of the three stages, by the number of groups (table 1 of the paper).
_CHANNELS = {1: (144, 288, 576), 2: (200, 400, 800), 3: (240, 480, 960)}
_STEM, _BLOCKS = 24, (4, 8, 4)


def _conv(x, features, window, stride, groups, name):
    return Conv(
        features,
        (window, window),
        stride,
        padding=window // 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=torch_uniform(x.shape[-1] // groups * window**2),
        name=name,
    )(x)


class Block(nn.Module):
    """1x1 in groups, shuffled, depthwise 3x3, 1x1 in groups; and what came in.

    Each convolution is followed by a norm, the first two by a relu too. With a stride
    of 1 what came in is added; with 2 its mean over 3x3 windows is set behind, and the
    convolutions make the other `features`. A relu ends both. The 1x1 convolution that
    the stem's channels enter has one group.
    """

    features: int
    stride: int
    groups: int
    norm: Norm

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool,
        mask: Float[Array, " batch"] | None,
    ) -> Float[Array, "batch new_height new_width features"]:
        channels = inputs.shape[-1]
        made = self.features - (channels if self.stride == 2 else 0)
        first = 1 if channels == _STEM else self.groups
        x = _conv(inputs, made // 4, 1, 1, first, "conv1")
        x = jax.nn.relu(norm(x, self.norm, train, mask, "bn1"))
        x = channel_shuffle(x, first)
        x = _conv(x, made // 4, 3, self.stride, made // 4, "conv2")
        x = jax.nn.relu(norm(x, self.norm, train, mask, "bn2"))
        x = _conv(x, made, 1, 1, self.groups, "conv3")
        x = norm(x, self.norm, train, mask, "bn3")
        if self.stride == 1:
            return jax.nn.relu(x + inputs)
        shortcut = avg_pool(inputs, 3, 2, padding=1)
        return jax.nn.relu(jnp.concatenate([x, shortcut], -1))


class Model(nn.Module):
    """A 1x1 convolution, 16 blocks in 3 stages, mean over pixels, linear.

    887,582 parameters for RGB and 10 classes. The first block of a stage halves the
    picture. Other than in the paper, the stem keeps the picture's size, and a relu
    follows the depthwise convolutions.

    Attributes:
        num_classes: outputs.
        groups: of the 1x1 convolutions: 1, 2 or 3; more groups have more channels.
        norm: "batch", "group", "instance" or "none". In federated learning batch
            statistics differ between clients; the others have none.
    """

    num_classes: int
    groups: Literal[1, 2, 3] = 2
    norm: Norm = "batch"

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        x = _conv(inputs, _STEM, 1, 1, 1, "conv1")
        x = jax.nn.relu(norm(x, self.norm, train, mask, "bn1"))
        for stage, blocks in enumerate(_BLOCKS):
            for i in range(blocks):
                x = Block(
                    features=_CHANNELS[self.groups][stage],
                    stride=1 if i else 2,
                    groups=self.groups,
                    norm=self.norm,
                    name=f"layer{stage + 1}_{i}",
                )(x, train, mask)
        return dense(x.mean((1, 2)), self.num_classes, "classifier")
