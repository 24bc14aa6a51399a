"""How many rows of a batch to differentiate at once.

The gradient of a mean over rows is the weighted mean of the gradients of blocks of
them. A block whose intermediate values fit in a processor's cache trains faster than a
batch that does not (ConvNet on 32x32 pictures: 1.84 against 2.40 ms of processor time
an example), and one compiled shape serves every batch.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jaxtyping import Array, PRNGKeyArray, PyTree

from gptfl_jax.training import Batch

# What a block may keep for its backward pass. A constant, not the size of the cache at
# hand: a result must not depend on the machine, not even in its rounding.
_KEPT_BYTES = 8 * 2**20

# Blocks of large weights, which do not fit in a cache anyway, keep so many times the
# weights: reading these, and adding to their gradient, is then little of the work, and
# the memory of a batch is bounded.
_KEPT_TIMES_WEIGHTS = 16


class Differentiated(NamedTuple):
    """A loss and where its gradient is taken; arrays or their shapes."""

    loss: Callable[[PyTree, Batch, PRNGKeyArray, Any], tuple[Array, PyTree]]
    """(params, batch, key, context) -> (mean loss of the real rows, model state)."""
    params: PyTree
    batch: Batch
    """Of the full size."""
    key: PRNGKeyArray
    """What the loss would draw with."""
    context: Any
    """What else the loss depends on."""


def kept_bytes(of: Differentiated) -> int:
    """What a batch keeps for its backward pass, the weights not counted."""
    (kept, _), _ = _forward(of)
    return _bytes(kept) - _bytes(of.params)


def rows_at_once(of: Differentiated) -> int:
    """Rows of a block, or 0 for a batch that should be differentiated as a whole.

    It should if the loss is no mean over rows (it has model state, as batch statistics)
    or draws random numbers (a block would draw others), and if all of it is small
    enough anyway: beside a cache, or beside the weights, which every block reads and
    whose gradient it writes, where these are large themselves.
    """
    (kept, state), jaxpr = _forward(of)
    if jax.tree.leaves(state) or _depends(jaxpr, jaxpr.outvars[0], jaxpr.invars[-1]):
        return 0
    rows, weights = of.batch.mask.shape[0], _bytes(of.params)
    # The weights are kept for the backward pass as well.
    large = 2 * weights > _KEPT_BYTES
    most = _KEPT_TIMES_WEIGHTS * weights if large else _KEPT_BYTES
    count = math.ceil((_bytes(kept) - weights) / most)
    if count <= 1:
        return 0
    # Of these, the size that costs least: padding, and a block about a quarter row.
    sizes = {math.ceil(rows / n) for n in range(count, 2 * count + 1)}
    return min(sizes, key=lambda size: math.ceil(rows / size) * (size + 0.25))


def _forward(of):
    """((what is kept for the backward pass, model state), the jaxpr; key is last)."""

    def forward(params, batch, context, key):
        return jax.vjp(
            lambda params: of.loss(params, batch, key, context), params, has_aux=True
        )

    jaxpr, (_, kept, state) = jax.make_jaxpr(forward, return_shape=True)(
        of.params, of.batch, of.context, of.key
    )
    return (kept, state), jaxpr.jaxpr


def _bytes(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _depends(jaxpr: core.Jaxpr, output: Any, source: core.Var) -> bool:
    """Whether an output may depend on an input."""
    reached = {source}
    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, core.Literal)]
        if not reached.isdisjoint(variables):
            reached.update(equation.outvars)
    return not isinstance(output, core.Literal) and output in reached
