"""A small convolutional network over log-mel spectrograms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import he_normal
from jaxtyping import Array, Float, Int

from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, hide_padding, max_pool, mean_over_time


class Model(nn.Module):
    """For each width [conv 5 over time, relu, max pool 2], mean over time, linear.

    Bands are channels. A clip's result is that of the clip alone, whatever the padding
    behind it. Without normalisation layers, as suits federated averaging. Inputs are
    features, or the pair (features, lengths); without lengths all frames are real.

    Attributes:
        num_classes: outputs.
        widths: channels of the convolutions.
        dropout: share of the values before the linear layer that are dropped in
            training.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 96, 128)
    dropout: int | float = 0.2

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames bands"]
        | tuple[Float[Array, "batch frames bands"], Int[Array, " batch"]],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; nothing in it depends on `mask`, which is that of the examples."""
        x, lengths = inputs if isinstance(inputs, tuple) else (inputs, None)
        if x.shape[1] < 2 ** len(self.widths):
            raise UserError(
                f"config.model.options.widths: clips of {x.shape[1]} frames cannot be "
                f"halved {len(self.widths)} times"
            )
        for i, width in enumerate(self.widths):
            x = hide_padding(x, lengths)
            x = Conv(width, 5, kernel_init=he_normal(), name=f"conv{i}")(x)
            x = max_pool(jax.nn.relu(x), 2)
            if lengths is not None:
                # A window across the end of a clip is dropped, as at that of the array.
                lengths = jnp.maximum(lengths // 2, 1)
        x = mean_over_time(x, lengths)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Dense(self.num_classes, name="classifier")(x)
