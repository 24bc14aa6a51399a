"""A multilayer perceptron: the "2NN" of FedAvg's paper (arXiv 1602.05629)."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.nn import dense, flatten


class Model(nn.Module):
    """Dense layers, each followed by a relu, then a linear layer.

    199,210 parameters for 28x28 grey pictures and 10 classes, as in the paper.

    Attributes:
        num_classes: outputs.
        hidden: widths of the dense layers, from the first on.
        dropout: share of their outputs that is dropped in training.
    """

    num_classes: int
    hidden: Sequence[rules.PositiveCount] = (200, 200)
    dropout: rules.ProperFraction = 0.0

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch ..."],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits of arrays of any shape; nothing in it depends on `mask`."""
        x = flatten(inputs)
        for i, features in enumerate(self.hidden):
            x = jax.nn.relu(dense(x, features, f"dense_{i}"))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return dense(x, self.num_classes, "classifier")
