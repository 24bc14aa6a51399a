"""beartype, which writes the check of a function inside another function only once.

jaxtyping has it check a stand-in for each function: the same signature, an empty body.
Of a function inside another it makes a new one at every call of the outer one.
"""

import types
from collections.abc import Callable, Hashable
from typing import Any

import beartype
from jaxtyping import AbstractArray

_checks: dict[Hashable, Callable] = {}


def check(function: Callable) -> Callable:
    """As `beartype.beartype`."""
    if not isinstance(function, types.FunctionType) or (
        function.__code__.co_filename != "<string>"
        or function.__defaults__
        or function.__kwdefaults__
    ):
        return beartype.beartype(function)
    signature = (
        *(function.__module__, function.__qualname__, function.__code__),
        *((name, _same(each)) for name, each in function.__annotations__.items()),
    )
    try:
        known = _checks.get(signature)
    except TypeError:  # an annotation without a hash
        return beartype.beartype(function)
    if known is None:
        known = _checks[signature] = beartype.beartype(function)
    return known


def _same(annotation: Any) -> Hashable:
    """Equal for equal annotations: `Float[Array, "n"]` is a new class each time."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return annotation.dtype, annotation.array_type, annotation.dim_str
    return annotation
