"""Residual networks for 32x32 pictures (arXiv 1512.03385, section 4.2)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import he_normal
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, Norm, norm

RELEASED = {
    "conv1": "conv",
    "bn1": "norm.batch",
    **{
        f"layer{stage + 1}.*.{theirs}{i + 1}": f"stage{stage}_block*.{ours}"
        for stage in range(3)
        for i in range(2)
        for theirs, ours in (("conv", f"conv{i}"), ("bn", f"norm{i}.batch"))
    },
    "linear": "classifier",
}
"""The original's names of our layers, where they differ."""


class NamedNorm(nn.Module):
    """A norm within a module of its own, called by its kind, as in all checkpoints."""

    norm: Norm
    groups: int
    track_running_stats: bool

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool,
        mask: Float[Array, " batch"] | None,
    ) -> Float[Array, "batch height width channels"]:
        return norm(
            inputs,
            self.norm,
            train,
            mask,
            self.norm,
            self.groups,
            self.track_running_stats,
        )


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), convolutions 3x3.

    The shortcut has no parameters (option A of the paper): every `stride`-th pixel, new
    channels zero, half of them before and half behind the old ones.
    """

    features: int
    stride: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool,
        mask: Float[Array, " batch"] | None,
    ) -> Float[Array, "batch new_height new_width features"]:
        x = inputs
        for i, stride in enumerate((self.stride, 1)):
            # Stride 2 with padding on both sides: "SAME" would pad one side only.
            x = Conv(
                self.features,
                (3, 3),
                stride,
                padding=1,
                use_bias=False,
                kernel_init=he_normal(),
                name=f"conv{i}",
            )(x)
            x = self.norm(name=f"norm{i}")(x, train, mask)
            x = jax.nn.relu(x) if i == 0 else x
        shortcut = inputs[:, :: self.stride, :: self.stride]
        new = self.features - shortcut.shape[-1]
        pads = [(0, 0)] * 3 + [(new // 2, new - new // 2)]
        return jax.nn.relu(x + jnp.pad(shortcut, pads))


class Model(nn.Module):
    """ResNet-20: conv 3x3, 3 stages of 3 basic blocks, mean over pixels, linear.

    Stages have `width`, 2 `width` and 4 `width` channels and halve the picture between
    them. 269,722 parameters for RGB and 10 classes with the default options.

    Attributes:
        num_classes: outputs.
        depth: 6 n + 2 with n blocks a stage: 8, 14, 20, 32, 44, 56, 110.
        width: channels of the first stage.
        norm: "batch", "group", "instance" or "none". In federated learning batch
            statistics differ between clients; the others have none (arXiv 1910.00189).
        groups: of group normalisation, or the most that divide them and the channels.
        track_running_stats: of batch normalisation, whether tests take the running
            statistics, or those of each batch, on which their results then depend.
    """

    num_classes: int
    depth: rules.PositiveCount = 20
    width: rules.PositiveCount = 16
    norm: Norm = "batch"
    groups: rules.PositiveCount = 8
    track_running_stats: bool = True

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; rows of mask 0 do not enter the batch statistics in training."""
        blocks, rest = divmod(self.depth - 2, 6)
        if rest or blocks < 1:
            raise UserError(
                f"config.model.options.depth = {self.depth}: takes 8, 14, 20, ..."
            )
        x = Conv(
            self.width,
            (3, 3),
            padding=1,
            use_bias=False,
            kernel_init=he_normal(),
            name="conv",
        )(inputs)
        make_norm = functools.partial(
            NamedNorm, self.norm, self.groups, self.track_running_stats
        )
        x = jax.nn.relu(make_norm(name="norm")(x, train, mask))
        for stage in range(3):
            for i in range(blocks):
                x = BasicBlock(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    norm=make_norm,
                    name=f"stage{stage}_block{i}",
                )(x, train, mask)
        return Dense(self.num_classes, name="classifier")(x.mean((1, 2)))
