"""ShuffleNetV2 (arXiv 1807.11164), as torchvision's.

Weights that torchvision releases are read by `read_weights`. For the first ShuffleNet
see `gptfl_jax.models.shufflenet`.
"""

import os
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import (
    Conv,
    Norm,
    channel_shuffle,
    dense,
    max_pool,
    norm,
    torch_uniform,
)
from gptfl_jax.released import classifiers, weight_files

RELEASED = {"fc": "classifier"}
"""torchvision's names of our layers, where they differ."""

# Channels of the three stages and of the last convolution, by width (table 5).
_CHANNELS = {
    0.5: ((48, 96, 192), 1024),
    1.0: ((116, 232, 464), 1024),
    1.5: ((176, 352, 704), 1024),
    2.0: ((244, 488, 976), 2048),
}
IMAGENET = {
    weight_files.TORCHVISION + file: {
        **{"stem": "imagenet", "norm": "batch"},
        "width": width,
    }
    for width, file in {
        0.5: "shufflenetv2_x0.5-f707e7126e.pth",
        1.0: "shufflenetv2_x1-5666bf0f80.pth",
        1.5: "shufflenetv2_x1_5-3c479a10.pth",
        2.0: "shufflenetv2_x2_0-8be3c8ee.pth",
    }.items()
}
"""torchvision's files for the classes of ImageNet, and the options that each is of."""

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
    """Half of the channels pass, half go through 1x1, depthwise 3x3, 1x1; shuffled.

    With a stride of 2 both halves are made of all channels: one by a depthwise and a
    1x1 convolution. Every convolution is followed by a norm, every 1x1 by a relu too.
    """

    features: int
    stride: int
    norm: Norm

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool,
        mask: Float[Array, " batch"] | None,
    ) -> Float[Array, "batch new_height new_width features"]:
        def apply(x, branch, place, window, depthwise=False):
            channels = x.shape[-1] if depthwise else half
            groups, stride = (channels, self.stride) if depthwise else (1, 1)
            x = _conv(x, channels, window, stride, groups, f"{branch}_{place}")
            x = norm(x, self.norm, train, mask, f"{branch}_{place + 1}")
            return x if depthwise else jax.nn.relu(x)

        half = self.features // 2
        if self.stride == 1:
            passed, x = jnp.split(inputs, 2, -1)
        else:
            passed = apply(inputs, "branch1", 0, 3, depthwise=True)
            passed, x = apply(passed, "branch1", 2, 1), inputs
        x = apply(x, "branch2", 0, 1)
        x = apply(x, "branch2", 3, 3, depthwise=True)
        x = apply(x, "branch2", 5, 1)
        return channel_shuffle(jnp.concatenate([passed, x], -1), 2)


class Model(nn.Module):
    """A convolution, 16 blocks in 3 stages, a 1x1 convolution, mean, linear.

    2,278,604 parameters for RGB and 1,000 classes at width 1. The first block of a
    stage halves the picture.

    Attributes:
        num_classes: outputs.
        stem: "imagenet" halves the picture twice before the first stage; "cifar", for
            pictures of 32 pixels, does not. Both have the same weights.
        norm: "batch", "group", "instance" or "none". In federated learning batch
            statistics differ between clients; the others have none.
        width: factor of the numbers of channels: 0.5, 1.0, 1.5 or 2.0.
    """

    num_classes: int
    stem: Literal["imagenet", "cifar"] = "imagenet"
    norm: Norm = "batch"
    width: rules.Positive = 1.0

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        if self.width not in _CHANNELS:
            raise UserError(
                f"config.model.options.width = {self.width}: takes 0.5, 1.0, 1.5 or 2.0"
            )
        large = self.stem == "imagenet"
        stages, last = _CHANNELS[self.width]
        x = _conv(inputs, _STEM, 3, 2 if large else 1, 1, "conv1_0")
        x = jax.nn.relu(norm(x, self.norm, train, mask, "conv1_1"))
        if large:
            x = max_pool(x, 3, 2, padding=1)
        for stage, (features, blocks) in enumerate(zip(stages, _BLOCKS, strict=True)):
            for i in range(blocks):
                x = Block(
                    features=features,
                    stride=1 if i else 2,
                    norm=self.norm,
                    name=f"stage{stage + 2}_{i}",
                )(x, train, mask)
        x = _conv(x, last, 1, 1, 1, "conv5_0")
        x = jax.nn.relu(norm(x, self.norm, train, mask, "conv5_1"))
        return dense(x.mean((1, 2)), self.num_classes, "classifier")


def read_weights(path: str | os.PathLike) -> tuple[Model, dict[str, Any]]:
    """The model that a file of torchvision's names holds, and its variables.

    `norm` and `width` follow from the weights. The file is a `.pth` or `.safetensors`,
    and is read without torch and without running what is in it.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    return classifiers.read_model(
        path,
        classifiers.Names(RELEASED),
        _described,
        "a ShuffleNetV2 by torchvision's names",
    )


def _described(weights):
    last, channels, _, _ = weights["conv5.0.weight"].shape
    sizes = {
        (stages[-1], features): width for width, (stages, features) in _CHANNELS.items()
    }
    model = Model(
        num_classes=len(weights["classifier.weight"]),
        norm=classifiers.norm_of(weights, "conv1.1"),
        width=sizes[channels, last],
    )
    return model, (32, 32, weights["conv1.0.weight"].shape[1])
