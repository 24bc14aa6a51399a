"""Multinomial logistic regression: a linear layer, whose loss is convex."""

import flax.linen as nn
from jaxtyping import Array, Float

from gptfl_jax.nn import dense, flatten


class Model(nn.Module):
    """A linear layer on all numbers of an example.

    7,850 parameters for 28x28 grey pictures and 10 classes.

    Attributes:
        num_classes: outputs.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch ..."],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits of arrays of any shape; nothing depends on `train` or `mask`."""
        return dense(flatten(inputs), self.num_classes, "classifier")
