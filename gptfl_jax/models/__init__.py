"""Downstream classifiers: one family a module, each with a `Model`.

`Model(num_classes, **options)` is a Linen module, called `model(inputs, train, mask)`.
`inputs` are processed (float pictures [batch, height, width, channels], or whatever
pytree the family takes, such as features and lengths) and the result is logits. `train`
switches dropout (rng "dropout") and batch statistics (collection "batch_stats"); `mask`
[batch], or None, is 0 for padding rows, which must not enter statistics over the batch.
The layer that makes the logits is called `classifier`; what it is given counts as the
representation of an example (`Learner.represent`).
"""

import importlib
import importlib.util
import inspect
import pkgutil

import flax.linen as nn

from gptfl_jax.errors import UserError


def create(name: str, num_classes: int, **options) -> nn.Module:
    """`Model(num_classes, **options)` of the module `gptfl_jax.models.<name>`.

    Raises:
      UserError: no such module, or options the model does not take.
    """
    if not name.isidentifier() or not importlib.util.find_spec(f"{__name__}.{name}"):
        known = sorted(module.name for module in pkgutil.iter_modules(__path__))
        raise UserError(
            f"config.model.name = {name!r}: takes one of {', '.join(known)}"
        )
    model = importlib.import_module(f"{__name__}.{name}").Model
    takes = [
        option
        for option in inspect.signature(model).parameters
        if option not in ("num_classes", "parent", "name")
    ]
    unknown = sorted(set(options) - set(takes))
    if unknown:
        raise UserError(
            f"config.model.options: {name} does not take {', '.join(unknown)}; "
            f"it takes {', '.join(takes)}"
        )
    return model(num_classes, **options)
