"""Which weights are trained: all, or a linear head on frozen features.

The variables of a model whose head alone is trained are in two parts:

    {"params": {"classifier": ...}, "frozen": {"params": ..., "batch_stats": ...}}

The first is what optimizers, clients and servers see, send and count. The second is
handed on unchanged, and nothing of it is sent, averaged or differentiated. Checkpoints
and files hold the model as a `whole`.
"""

from typing import Any, Literal

from jaxtyping import PyTree

from gptfl_jax.errors import UserError

Trainable = Literal["all", "head"]

FROZEN = "frozen"
"""The collection of what is not trained."""
HEAD = "classifier"
"""The layer that makes the logits."""


def head_alone(variables: dict[str, PyTree]) -> dict[str, Any]:
    """A whole model's variables with all but the head frozen.

    Raises:
        UserError: the model has no layer of this name.
    """
    params = dict(variables["params"])
    if HEAD not in params:
        raise UserError(
            f"trainable = 'head': the model has no layer {HEAD!r} at its end, but "
            f"{', '.join(params)}: call its last layer so"
        )
    head = {HEAD: params.pop(HEAD)}
    return {"params": head, FROZEN: {**variables, "params": params}}


def whole(variables: dict[str, PyTree]) -> dict[str, Any]:
    """The variables as the model has them; of whole ones, the same."""
    if FROZEN not in variables:
        return variables
    params = {**variables[FROZEN]["params"], **variables["params"]}
    return {**variables[FROZEN], **moving(variables), "params": params}


def parted(variables: dict[str, PyTree], template: dict[str, PyTree]) -> dict[str, Any]:
    """A whole model's variables in the parts that a template has."""
    return head_alone(variables) if FROZEN in template else variables


def moving(variables: dict[str, PyTree]) -> dict[str, Any]:
    """What training changes: all but the frozen part."""
    return {name: tree for name, tree in variables.items() if name != FROZEN}


def frozen(variables: dict[str, PyTree]) -> dict[str, Any]:
    """The frozen part as a collection of its own, or nothing, to be put to others."""
    return {name: tree for name, tree in variables.items() if name == FROZEN}
