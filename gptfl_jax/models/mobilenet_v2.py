"""MobileNetV2 (arXiv 1801.04381), as torchvision's.

Weights that torchvision releases are read by `read_weights`.
"""

import os
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, variance_scaling
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.nn import Conv, Dense, Norm, norm
from gptfl_jax.released import classifiers, weight_files

RELEASED = {"classifier.1": "classifier"}
"""torchvision's names of our layers, where they differ."""

# Expansion, channels, blocks and stride of each stage (table 2 of the paper).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280

IMAGENET = {
    weight_files.TORCHVISION + "mobilenet_v2-b0353104.pth": {
        **{"norm": "batch", "width": 1.0},
    },
}
"""torchvision's file for the classes of ImageNet, and the options it is of."""

_he_normal = variance_scaling(2.0, "fan_out", "normal")


def _channels(channels: int | float) -> int:
    """The nearest multiple of 8, or the next where that is less by over a tenth."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class ConvNormRelu(nn.Module):
    """A convolution, a norm, and a relu that ends at 6."""

    features: int
    window: int
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
        x = Conv(
            self.features,
            (self.window, self.window),
            self.stride,
            padding=self.window // 2,
            feature_group_count=self.groups,
            use_bias=False,
            kernel_init=_he_normal,
            name="0",
        )(inputs)
        x = norm(x, self.norm, train, mask, "1")
        return jnp.minimum(jax.nn.relu(x), 6)


class InvertedResidual(nn.Module):
    """Widens by `expansion`, convolves each channel, narrows; adds x where it fits."""

    features: int
    stride: int
    expansion: int
    norm: Norm

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool,
        mask: Float[Array, " batch"] | None,
    ) -> Float[Array, "batch new_height new_width features"]:
        wide = inputs.shape[-1] * self.expansion
        layers = [(1, 1, 1), (3, self.stride, wide)]
        if self.expansion == 1:
            del layers[0]
        x = inputs
        for i, (window, stride, groups) in enumerate(layers):
            x = ConvNormRelu(wide, window, stride, groups, self.norm, name=f"conv_{i}")(
                x, train, mask
            )
        last = len(layers)
        x = Conv(
            self.features,
            (1, 1),
            use_bias=False,
            kernel_init=_he_normal,
            name=f"conv_{last}",
        )(x)
        x = norm(x, self.norm, train, mask, f"conv_{last + 1}")
        return inputs + x if x.shape == inputs.shape else x


class Model(nn.Module):
    """A convolution, 17 inverted residual blocks, a 1x1 convolution, mean, linear.

    3,504,872 parameters for RGB and 1,000 classes.

    Attributes:
        num_classes: outputs.
        stem: "imagenet" halves the picture five times; "cifar", for pictures of 32
            pixels, three times: the first convolution and the second stage do not.
            Both have the same weights.
        norm: "batch", "group", "instance" or "none".
        width: factor of the numbers of channels, which stay multiples of 8. Those of
            the last convolution are never less than 1,280.
        dropout: share of the mean's values that is dropped in training.
    """

    num_classes: int
    stem: Literal["imagenet", "cifar"] = "imagenet"
    norm: Norm = "batch"
    width: rules.Positive = 1.0
    dropout: rules.ProperFraction = 0.2

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        large = self.stem == "imagenet"
        x = ConvNormRelu(
            _channels(_STEM * self.width),
            3,
            2 if large else 1,
            1,
            self.norm,
            name="features_0",
        )(inputs, train, mask)
        place = 1
        for stage, (expansion, channels, blocks, stride) in enumerate(_STAGES):
            for i in range(blocks):
                halves = stride == 2 and i == 0 and (large or stage != 1)
                x = InvertedResidual(
                    _channels(channels * self.width),
                    2 if halves else 1,
                    expansion,
                    self.norm,
                    name=f"features_{place}",
                )(x, train, mask)
                place += 1
        last = _channels(_LAST * max(1.0, self.width))
        x = ConvNormRelu(last, 1, 1, 1, self.norm, name=f"features_{place}")(
            x, train, mask
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))
        return Dense(self.num_classes, kernel_init=normal(0.01), name="classifier")(x)


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
        "a MobileNetV2 by torchvision's names",
    )


def _described(weights):
    model = Model(
        num_classes=len(weights["classifier.weight"]),
        norm=classifiers.norm_of(weights, "features.0.1"),
        width=len(weights["features.17.conv.2.weight"]) / _STAGES[-1][1],
    )
    return model, (32, 32, weights["features.0.0.weight"].shape[1])
