"""Residual networks for photographs (arXiv 1512.03385, section 4.1), as torchvision's.

Weights that torchvision releases are read by `read_weights`. For the network that the
same paper has for 32x32 pictures see `gptfl_jax.models.resnet`.
"""

import os
from typing import Any, Literal

import flax.linen as nn
import jax
from flax.linen.initializers import variance_scaling
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.nn import Conv, Norm, dense, max_pool, norm
from gptfl_jax.released import classifiers, weight_files

RELEASED = {"fc": "classifier"}
"""torchvision's names of our layers, where they differ."""

# Blocks a stage, and whether they are bottlenecks.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}

IMAGENET = {
    weight_files.TORCHVISION + file: {
        **{"depth": depth, "stem": "imagenet"},
        **{"norm": "batch", "width": 64},
    }
    for depth, file in {
        18: "resnet18-f37072fd.pth",
        34: "resnet34-b627a593.pth",
        50: "resnet50-0676ba61.pth",
        101: "resnet101-63fe2227.pth",
        152: "resnet152-394f9c45.pth",
    }.items()
}
"""torchvision's files for the classes of ImageNet, and the options that each is of."""

_he_normal = variance_scaling(2.0, "fan_out", "normal")


def _conv(features, window, stride, name):
    return Conv(
        features,
        (window, window),
        stride,
        padding=window // 2,
        use_bias=False,
        kernel_init=_he_normal,
        name=name,
    )


class Block(nn.Module):
    """relu(F(x) + shortcut(x)), F of two 3x3 convolutions, or 1x1, 3x3, 1x1.

    Each convolution is followed by a norm, and all but the last by a relu. The shortcut
    is the identity, or a 1x1 convolution and a norm where F changes the shape. A
    bottleneck's stride is that of its 3x3 convolution.
    """

    features: int
    stride: int
    bottleneck: bool
    norm: Norm

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool,
        mask: Float[Array, " batch"] | None,
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        width, stride = self.features, self.stride
        layers = [(width, 3, stride), (width, 3, 1)]
        if self.bottleneck:
            layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        x = inputs
        for i, (features, window, step) in enumerate(layers, 1):
            x = _conv(features, window, step, f"conv{i}")(x)
            x = norm(x, self.norm, train, mask, f"bn{i}")
            x = jax.nn.relu(x) if i < len(layers) else x
        shortcut = inputs
        if stride > 1 or inputs.shape[-1] != x.shape[-1]:
            shortcut = _conv(x.shape[-1], 1, stride, "downsample_0")(inputs)
            shortcut = norm(shortcut, self.norm, train, mask, "downsample_1")
        return jax.nn.relu(x + shortcut)


class Model(nn.Module):
    """ResNet-18 to -152: stem, 4 stages of residual blocks, mean over pixels, linear.

    11,689,512 parameters at depth 18 and 25,557,032 at depth 50 for RGB and 1,000
    classes. Stages have `width`, 2, 4 and 8 `width` channels, in bottlenecks (from
    depth 50) 4 times as many, and halve the picture between them.

    Attributes:
        num_classes: outputs.
        depth: 18, 34, 50, 101 or 152.
        stem: "imagenet", a 7x7 convolution of stride 2 and a 3x3 max pool of stride 2,
            or "cifar", a 3x3 convolution, for pictures of 32 pixels.
        norm: "batch", "group", "instance" or "none". In federated learning batch
            statistics differ between clients; the others have none.
        width: channels of the stem.
    """

    num_classes: int
    depth: Literal[18, 34, 50, 101, 152] = 18
    stem: Literal["imagenet", "cifar"] = "imagenet"
    norm: Norm = "batch"
    width: rules.PositiveCount = 64

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        window, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = _conv(self.width, window, stride, "conv1")(inputs)
        x = jax.nn.relu(norm(x, self.norm, train, mask, "bn1"))
        if self.stem == "imagenet":
            x = max_pool(x, 3, 2, padding=1)
        stages, bottleneck = _DEPTHS[self.depth]
        for stage, blocks in enumerate(stages):
            for i in range(blocks):
                x = Block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    bottleneck=bottleneck,
                    norm=self.norm,
                    name=f"layer{stage + 1}_{i}",
                )(x, train, mask)
        return dense(x.mean((1, 2)), self.num_classes, "classifier")


def read_weights(path: str | os.PathLike) -> tuple[Model, dict[str, Any]]:
    """The model that a file of torchvision's names holds, and its variables.

    The options follow from the weights. The file is a `.pth` or `.safetensors`, and is
    read without torch and without running what is in it.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    return classifiers.read_model(
        path,
        classifiers.Names(RELEASED),
        _described,
        "a ResNet by torchvision's names",
    )


def _described(weights):
    width, channels, window, _ = weights["conv1.weight"].shape
    stages = tuple(
        sum(f"layer{stage}.{i}.conv1.weight" in weights for i in range(100))
        for stage in (1, 2, 3, 4)
    )
    shape = stages, "layer1.0.conv3.weight" in weights
    model = Model(
        num_classes=len(weights["classifier.weight"]),
        depth=next(depth for depth, each in _DEPTHS.items() if each == shape),
        stem="imagenet" if window == 7 else "cifar",
        norm=classifiers.norm_of(weights, "bn1"),
        width=width,
    )
    return model, (32, 32, channels)
