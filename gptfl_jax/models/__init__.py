"""Downstream classifiers: one family a module, each with a `Model`.

`Model(num_classes, **options)` is a Linen module, called `model(inputs, train, mask)`.
`inputs` are processed (float pictures [batch, height, width, channels], or whatever
pytree the family takes, such as features and lengths) and the result is logits. `train`
switches dropout (rng "dropout") and batch statistics (collection "batch_stats"); `mask`
[batch], or None, is 0 for padding rows, which must not enter statistics over the batch.
The layer that makes the logits is called `classifier`; what it is given counts as the
representation of an example (`Learner.represent`).
"""

import flax.linen as nn

from gptfl_jax import choices, families


def create(name: str, num_classes: int, **options) -> nn.Module:
    """`Model(num_classes, **options)` of the module `gptfl_jax.models.<name>`.

    Args:
        name: of the module; or of one of your own, as `my_package.my_file` or
            `path/to/file.py`.

    Raises:
        UserError: no such module, or options the model does not take.
    """
    return choices.bind(families.MODEL, name, options, num_classes=num_classes)
