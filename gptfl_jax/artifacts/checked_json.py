"""JSON that others may have changed: read strictly, and held against what it should be.

A shape says what a value should be. It is

- a kind: "text", "string" (text that may hold what is not Unicode), "whole" (a number
  without a fraction, below 2^64 in size), "number" (a finite one), "flag" (true or
  false), "null", "anything";
- {"name": shape, ...}: a mapping with these entries, and maybe others; of a name that
  ends in "?" the entry may be missing, and "*" stands for every other name;
- [shape]: a list, all of whose entries have the shape;
- a tuple of shapes, of which one is enough.
"""

import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from gptfl_jax.artifacts.files import PathLike, read_plain
from gptfl_jax.errors import UserError
from gptfl_jax.rules import is_utf8

Shape = str | dict[str, Any] | list[Any] | tuple[Any, ...]


class _Kind(NamedTuple):
    name: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return type(value) is int and -(2**64) < value < 2**64


def _is_number(value: Any) -> bool:
    return math.isfinite(value) if type(value) is float else _is_whole(value)


_KINDS = {
    "text": _Kind("text", lambda value: isinstance(value, str) and is_utf8(value)),
    "string": _Kind("text", lambda value: isinstance(value, str)),
    "whole": _Kind("a whole number", _is_whole),
    "number": _Kind("a number", _is_number),
    "flag": _Kind("true or false", lambda value: isinstance(value, bool)),
    "null": _Kind("null", lambda value: value is None),
    "anything": _Kind("anything", lambda value: True),
}


def read_json(path: PathLike, shape: Shape, remedy: str) -> Any:
    """Reads a file of JSON.

    Args:
        remedy: what a user can do about a damaged file, as "delete it".

    Raises:
        FileNotFoundError: there is none.
        UserError: it cannot be read, or is of another shape; the message has the
            remedy.
    """
    path = pathlib.Path(path)
    try:
        return parse(read_plain(path), shape)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{path}: cannot be read ({reason}); {remedy}")


def parse(content: bytes, shape: Shape = "anything") -> Any:
    """The value of UTF-8 JSON.

    Raises:
        ValueError: it is no JSON, as NaN and the infinities are none, or of another
            shape. The message says what is wrong, in a line without control characters.
    """
    try:
        value = json.loads(content.decode(), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON at character {error.pos + 1}: {error.msg}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        # Python's own limit; its message speaks of Python.
        limit = "integer string conversion" in str(error)
        raise ValueError("a number is too long" if limit else str(error)) from None
    if reason := fault(value, shape):
        raise ValueError(reason)
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def fault(value: Any, shape: Shape, name: str = "") -> str:
    """In what a value is not of a shape; empty: it is.

    Args:
        name: of the value, for the answer.
    """
    if fits(value, shape):
        return ""
    if isinstance(shape, str):
        return f"{_named(name)} is not {_KINDS[shape].name}"
    if isinstance(shape, tuple):
        return fault(value, shape[-1], name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{_named(name)} is not a list"
        faults = (
            fault(entry, shape[0], f"{name}[{index}]")
            for index, entry in enumerate(value)
        )
        return next(filter(None, faults))
    if not isinstance(value, dict):
        return f"{_named(name)} is not a mapping"
    before = f"{name}." if name else ""
    for key in shape:
        if key != "*" and key[-1] != "?" and key not in value:
            return f"{_named(before + key)} is missing"
    faults = (
        fault(entry, _of_key(shape, key), before + key) for key, entry in value.items()
    )
    return next(filter(None, faults))


def fits(value: Any, shape: Shape) -> bool:
    """Whether a value is of a shape: `fault` in a fraction of its time."""
    if isinstance(shape, str):
        return _KINDS[shape].holds(value)
    if isinstance(shape, tuple):
        return any(fits(value, each) for each in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(each, shape[0]) for each in value)
    if not isinstance(value, dict):
        return False
    for key, of_key in shape.items():
        optional = key[-1] == "?"
        key = key[:-1] if optional else key
        if key in value:
            if not fits(value[key], of_key):
                return False
        elif not optional and key != "*":
            return False
    return "*" not in shape or all(
        fits(entry, _of_key(shape, key)) for key, entry in value.items()
    )


def _of_key(shape: dict[str, Any], key: str) -> Shape:
    return shape.get(key, shape.get(f"{key}?", shape.get("*", "anything")))


def _named(name: str) -> str:
    """A name for a message, which may come from the file; empty is the whole value."""
    name = name if len(name) <= 80 else f"{name[:79]}\u2026"
    return ascii(name)[1:-1] if name else "what it holds"
