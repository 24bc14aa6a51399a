"""The convolutional network of FedAvg's paper (arXiv 1602.05629)."""

import flax.linen as nn
import jax
from flax.linen.initializers import he_normal
from jaxtyping import Array, Float

from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, max_pool

FLATTENED = {"dense": "conv1"}
"""The dense layer takes a picture of as many channels as `conv1` makes."""


class Model(nn.Module):
    """2 x [conv 5x5, relu, max pool 2] with 32 and 64 channels, dense 512, linear.

    "SAME" padding, as in the paper's 1,663,370 parameters for 28x28 grey pictures and
    10 classes.

    Attributes:
        num_classes: outputs.
        hidden: width of the dense layer.
    """

    num_classes: int
    hidden: int = 512

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; nothing in it depends on `train` or `mask`."""
        if min(inputs.shape[1:3]) < 4:
            raise UserError("config.model.name = 'cnn': takes pictures from 4x4 pixels")
        x = inputs
        for i, features in enumerate((32, 64)):
            x = Conv(features, (5, 5), kernel_init=he_normal(), name=f"conv{i}")(x)
            # The largest value first: relu, which keeps the order, has a quarter left.
            x = jax.nn.relu(max_pool(x, 2))
        x = x.reshape(x.shape[0], -1)
        x = Dense(self.hidden, kernel_init=he_normal(), name="dense")(x)
        return Dense(self.num_classes, name="classifier")(jax.nn.relu(x))
