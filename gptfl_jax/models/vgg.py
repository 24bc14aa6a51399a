"""VGG networks (arXiv 1409.1556), as torchvision's.

Weights that torchvision releases are read by `read_weights`.
"""

import os
from typing import Any, Literal

import flax.linen as nn
import jax
from flax.linen.initializers import normal, variance_scaling
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, Norm, adaptive_avg_pool, flatten, max_pool, norm
from gptfl_jax.released import classifiers, weight_files

RELEASED = {
    "classifier.0": "dense.0",
    "classifier.3": "dense.1",
    "classifier.6": "classifier",
}
"""torchvision's names of our layers, where they differ."""

# Convolutions a stage.
_DEPTHS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}

IMAGENET = {
    weight_files.TORCHVISION + file: {
        **{"depth": depth, "norm": kind},
        **{"width": 64, "pooled": 7, "hidden": 4096},
    }
    for (depth, kind), file in {
        (11, "none"): "vgg11-8a719046.pth",
        (13, "none"): "vgg13-19584684.pth",
        (16, "none"): "vgg16-397923af.pth",
        (19, "none"): "vgg19-dcbb9e9d.pth",
        (11, "batch"): "vgg11_bn-6002323d.pth",
        (13, "batch"): "vgg13_bn-abd245e5.pth",
        (16, "batch"): "vgg16_bn-6c64b313.pth",
        (19, "batch"): "vgg19_bn-c79401a0.pth",
    }.items()
}
"""torchvision's files for the classes of ImageNet, and the options that each is of."""

_he_normal = variance_scaling(2.0, "fan_out", "normal")


class Model(nn.Module):
    """VGG-11 to -19: 5 stages of 3x3 convolutions and a max pool 2, 3 x linear.

    138,357,544 parameters at depth 16 for RGB and 1,000 classes. Every convolution is
    followed by a relu, with a norm before it if there is one. Stages have `width`, 2,
    4, 8 and 8 `width` channels. Their result, of any picture from 32 pixels on, is
    pooled to `pooled` x `pooled`: of 32 pixels one is left, which 7 x 7 repeats:
    with `pooled=1, hidden=512` the linear layers have a two-hundredth of the weights.

    Attributes:
        num_classes: outputs.
        depth: 11, 13, 16 or 19 layers with weights.
        norm: "none", "batch", "group" or "instance".
        width: channels of the first convolution.
        pooled: pixels along each side of what enters the linear layers.
        hidden: width of the two linear layers before the last; 0: the last alone.
        dropout: share of their outputs that is dropped in training.
    """

    num_classes: int
    depth: Literal[11, 13, 16, 19] = 16
    norm: Norm = "none"
    width: rules.PositiveCount = 64
    pooled: rules.PositiveCount = 7
    hidden: rules.Count = 4096
    dropout: rules.ProperFraction = 0.5

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        if min(inputs.shape[1:3]) < 32:
            raise UserError(
                "config.model.name = 'vgg': takes pictures from 32x32 pixels"
            )
        x, place = inputs, 0  # the number that torch counts layers by
        for stage, convolutions in enumerate(_DEPTHS[self.depth]):
            for _ in range(convolutions):
                x = Conv(
                    self.width * 2 ** min(stage, 3),
                    (3, 3),
                    padding=1,
                    kernel_init=_he_normal,
                    name=f"features_{place}",
                )(x)
                x = norm(x, self.norm, train, mask, f"features_{place + 1}")
                x = jax.nn.relu(x)
                place += 2 if self.norm == "none" else 3
            x = max_pool(x, 2)
            place += 1
        x = adaptive_avg_pool(x, self.pooled)
        x = flatten(x)
        for i in range(2 if self.hidden else 0):
            x = Dense(self.hidden, kernel_init=normal(0.01), name=f"dense_{i}")(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.relu(x))
        return Dense(self.num_classes, kernel_init=normal(0.01), name="classifier")(x)


def read_weights(path: str | os.PathLike) -> tuple[Model, dict[str, Any]]:
    """The model that a file of torchvision's names holds, and its variables.

    The options follow from the weights. The file is a `.pth` or `.safetensors`, and is
    read without torch and without running what is in it.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    return classifiers.read_model(
        path, classifiers.Names(RELEASED), _described, "a VGG by torchvision's names"
    )


def _described(weights):
    count = sum(
        name.startswith("features.") and value.ndim == 4
        for name, value in weights.items()
    )
    width, channels, _, _ = weights["features.0.weight"].shape
    hidden, inputs = weights["dense.0.weight"].shape
    model = Model(
        num_classes=len(weights["classifier.weight"]),
        depth=next(d for d, stages in _DEPTHS.items() if sum(stages) == count),
        norm=classifiers.norm_of(weights, "features.1"),
        width=width,
        pooled=round((inputs / (8 * width)) ** 0.5),
        hidden=hidden,
    )
    return model, (32, 32, channels)
