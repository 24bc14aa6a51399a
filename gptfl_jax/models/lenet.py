"""LeNet-5 (LeCun et al. 1998, Gradient-based learning applied to document recognition).

In today's form: relu, max pools, and all channels of the first layer in the second.
"""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from gptfl_jax import rules
from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, dense, flatten, max_pool, torch_uniform

RELEASED = {"fc3": "classifier"}
"""Names of our layers in files of PyTorch, where they differ."""


class Model(nn.Module):
    """2 x [conv 5x5, relu, max pool 2], dense 120, dense 84, linear.

    The convolutions have 6 and 16 channels. 61,706 parameters for 28x28 grey pictures
    and 10 classes.

    Attributes:
        num_classes: outputs.
        padding: pixels around the picture; 0 for pictures of 32 pixels, as in the
            paper.
    """

    num_classes: int
    padding: rules.Count = 2

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch height width channels"],
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; nothing in it depends on `train` or `mask`."""
        if min(inputs.shape[1:3]) + 2 * self.padding < 16:
            raise UserError(
                f"config.model.options.padding = {self.padding}: pictures are to be "
                "16 pixels high and wide with it"
            )
        x = inputs
        for i, features in enumerate((6, 16)):
            start = torch_uniform(25 * x.shape[-1])
            x = Conv(
                features,
                (5, 5),
                padding=0 if i else self.padding,
                kernel_init=start,
                bias_init=start,
                name=f"conv{i + 1}",
            )(x)
            x = max_pool(jax.nn.relu(x), 2)
        x = flatten(x)
        for i, features in enumerate((120, 84), 1):
            x = jax.nn.relu(dense(x, features, f"fc{i}"))
        return dense(x, self.num_classes, "classifier")
