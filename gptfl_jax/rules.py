"""What a value from outside must be: in words, and as a test.

A function says what its options take in their annotations, and the command line, config
files and `--help` read it from there (`gptfl_jax.choices`):

    def fedprox(learner, local, *, mu: NonNegative = 0.01): ...
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import optax
from ml_collections import ConfigDict


class Rule(NamedTuple):
    """What a value must be: in words, and as a test."""

    takes: str
    valid: Callable[[Any], bool]


def is_utf8(text: str) -> bool:
    """Whether a text can be written: a name of bytes that are no UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether a value is a finite number: no field of ours takes others."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        return is_real and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def is_whole(value: Any) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole(least: int, bits: int = 31) -> Rule:
    """Whole numbers that JAX can count with."""
    return Rule(
        f"a whole number >= {least} and < 2**{bits}",
        lambda value: is_whole(value) and least <= value < 2**bits,
    )


def number(
    least: int | float | None = None,
    above: int | float | None = None,
    most: int | float | None = None,
    below: int | float | None = None,
) -> Rule:
    """A finite number: `least` <= it <= `most`, `above` < it < `below`."""
    bounds = [
        f"{sign} {bound}"
        for sign, bound in ((">=", least), (">", above), ("<=", most), ("<", below))
        if bound is not None
    ]

    def valid(value: Any) -> bool:
        return (
            is_number(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )

    return Rule(" ".join(("a number", " and ".join(bounds))).strip(), valid)


def one_of(*names: Any) -> Rule:
    """One of these texts (or numbers)."""
    takes = "one of " + ", ".join(map(str, names))
    return Rule(
        takes, lambda value: any(value == n and type(value) is type(n) for n in names)
    )


def tuple_of(rule: Rule, plural: str) -> Rule:
    """A list or tuple of values that each keep to a rule."""
    return Rule(
        f"a list of {plural}",
        lambda value: isinstance(value, tuple | list) and all(map(rule.valid, value)),
    )


def either(*rules: Rule) -> Rule:
    """What one of these rules takes."""
    return Rule(
        " or ".join(dict.fromkeys(rule.takes for rule in rules)),
        lambda value: any(rule.valid(value) for rule in rules),
    )


# File systems take 255 bytes; federated.compare appends turn and seed.
_LONGEST_NAME = 120


def _folder_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and not value.startswith(".")
        and not any(character in "/\\" or ord(character) < 32 for character in value)
        and is_utf8(value)
        and len(value.encode()) <= _LONGEST_NAME
    )


def _is_keywords(value: Any) -> bool:
    return isinstance(value, dict | ConfigDict) and all(
        isinstance(key, str) and key.isidentifier() for key in value.keys()
    )


def _optax_name(value: Any) -> bool:
    if not isinstance(value, str) or value.startswith("_"):
        return False
    function = getattr(optax, value, None)
    if not inspect.isfunction(function):
        return False
    # optax has schedules and losses as well: only optimizers take a learning rate.
    return "learning_rate" in inspect.signature(function).parameters


FLAG = Rule("True or False", lambda value: isinstance(value, bool))
TEXT = Rule("text in UTF-8", lambda value: isinstance(value, str) and is_utf8(value))
NAME = Rule("a name in UTF-8", lambda value: value != "" and TEXT.valid(value))
NAMES = tuple_of(NAME, "names")
SEED = whole(0, bits=32)
IDENTIFIER = Rule(
    "the name of a function",
    lambda value: isinstance(value, str) and value.isidentifier(),
)
FOLDER_NAME = Rule(
    f"a folder name of at most {_LONGEST_NAME} bytes",
    lambda value: value != "" and _folder_name(value),
)
FOLDER_NAME_OR_EMPTY = Rule(f"{FOLDER_NAME.takes}, or empty", _folder_name)
KEYWORDS = Rule("keyword arguments, as in {'name': value}", _is_keywords)
OPTAX_NAME = Rule("the name of an optax optimizer, as sgd or adam", _optax_name)
DTYPE = one_of("float32", "bfloat16", "float16", "float64")

# As annotations. int | float: the checks of types while the tests run take no integer
# for a float.
NonNegative = Annotated[int | float, number(least=0)]
Positive = Annotated[int | float, number(above=0)]
Fraction = Annotated[int | float, number(least=0, most=1)]
ProperFraction = Annotated[int | float, number(least=0, below=1)]
Count = Annotated[int, whole(0)]
PositiveCount = Annotated[int, whole(1)]
Seed = Annotated[int, SEED]
Name = Annotated[str, NAME]
OptaxName = Annotated[str, OPTAX_NAME]
Keywords = Annotated[Mapping[str, Any], KEYWORDS]


def of_annotation(annotation: Any) -> Rule | None:
    """The rule that an annotation stands for; None: any value may be tried.

    The first `Rule` of an `Annotated`; else `bool`, `int`, `float`, `str`, `None`,
    `Literal`, tuples and sequences, mappings, and unions of these.
    """
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        given = [each for each in inside[1:] if isinstance(each, Rule)]
        return given[0] if given else of_annotation(inside[0])
    if origin is Literal:
        return one_of(*inside)
    if origin in (typing.Union, types.UnionType):
        members = list(inside)
        if int in members and float in members:
            members.remove(int)
        parts = [of_annotation(each) for each in members]
        return None if None in parts else either(*parts)
    if origin in (tuple, list, Sequence) and inside:
        part = of_annotation(inside[0])
        return None if part is None else tuple_of(part, _PLURALS.get(inside[0], "them"))
    return _SIMPLE.get(origin or annotation)


_SIMPLE = {
    bool: FLAG,
    int: Rule("a whole number", is_whole),
    float: Rule("a number", is_number),
    str: TEXT,
    type(None): Rule("None", lambda value: value is None),
    None: Rule("None", lambda value: value is None),
    dict: KEYWORDS,
    Mapping: KEYWORDS,
    ConfigDict: KEYWORDS,
}
_PLURALS = {int: "whole numbers", float: "numbers", str: "names", bool: "flags"}
