"""What inputs go through before a convolution, and what its outputs are added to."""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, PyTree


@runtime_checkable
class Before(Protocol):
    """What inputs go through before a convolution: element by element, once numbers of
    each example are known. A PyTree, by whose leaves a convolution is differentiated.
    """

    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        """All of it."""

    def numbers(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> PyTree[Float[Array, "batch ..."]]:
        """Those of each example, which broadcast with a part of it."""

    def part(
        self,
        inputs: Float[Array, "batch *part channels"],
        numbers: PyTree[Float[Array, "batch ..."]],
    ) -> Float[Array, "batch *part channels"]:
        """The same for some places of the examples that `numbers` belong to."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elementwise:
    """A `Before` that is a function of each element alone."""

    function: Callable[[Array], Array] = dataclasses.field(metadata={"static": True})

    def __call__(
        self, inputs: Float[Array, "batch *spatial channels"]
    ) -> Float[Array, "batch *spatial channels"]:
        """The function of all."""
        return self.function(inputs)

    def numbers(self, inputs: Float[Array, "batch *spatial channels"]) -> tuple[()]:
        """None are needed."""
        return ()

    def part(
        self, inputs: Float[Array, "batch *part channels"], numbers: tuple[()]
    ) -> Float[Array, "batch *part channels"]:
        """The function of some."""
        return self.function(inputs)


def with_added(outputs, bias, plus):
    """The outputs with the bias, and what else is added; None: nothing."""
    if bias is not None:
        outputs = outputs + bias
    return outputs if plus is None else outputs + plus
