"""Reading and writing the `config.json` of a released model."""

import contextlib
import dataclasses
import math
import os
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from gptfl_jax import user_files
from gptfl_jax.errors import UserError

Config = TypeVar("Config", bound="ModelConfig")

# Of any size, and of a depth: a network is built before a file of weights can tell that
# it is another's, and building takes time and memory by the layers.
_LARGEST = 2**20
_DEEPEST = 100
_LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A network's options, under the names of the PyTorch class that it is a port of.

    A subclass lists the options that it computes as fields. What else the PyTorch class
    offers is named in `fixed`, with the values for which the network is the same, so
    that a checkpoint which needs more is refused instead of computed wrongly.
    """

    torch_class: ClassVar[str] = ""
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    # Options without effect on the outputs; None if anything unknown is of that kind.
    without_effect: ClassVar[frozenset[str] | None] = frozenset()

    @classmethod
    def from_json(
        cls: type[Config], data: Mapping[str, Any], source: str = "config.json"
    ) -> Config:
        """The options in `data`; those not named have the PyTorch class's defaults.

        Args:
            data: the parsed file.
            source: the file's name, for error messages.

        Raises:
            UserError: for an option that this port does not compute, or a value that is
                none of the option's.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        options = {}
        for name, value in data.items():
            found = reprlib.repr(value)
            if isinstance(value, list):
                value = _as_tuple(value, source)
            if name in defaults:
                takes = _what_is_wrong(name, value, hints[name], defaults[name])
                if takes:
                    raise UserError(
                        f"{source}: {name} = {found}: takes {takes}: download the "
                        "model again or name another"
                    )
                options[name] = float(value) if hints[name] is float else value
            elif name in cls.fixed:
                if value not in cls.fixed[name]:
                    known = " or ".join(repr(v) for v in cls.fixed[name])
                    raise UserError(
                        f"{source}: {name} = {found}, but {cls.__name__} supports "
                        f"only {known}: choose another model"
                    )
            elif (
                cls.without_effect is not None
                and name not in cls.without_effect
                and not name.startswith("_")
                and value not in (None, False)
            ):
                raise UserError(
                    f"{source}: {name} = {found} is not an option that "
                    f"{cls.__name__} knows: choose another model"
                )
        try:
            return cls(**options)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The options as they stand in a `config.json` that PyTorch's class reads."""
        options = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in options.items()
        }


@contextlib.contextmanager
def building(source: str | os.PathLike[str]) -> Iterator[None]:
    """Explains why a network of options that contradict each other cannot be built.

    Args:
        source: the file or folder that the options are from.

    Raises:
        UserError: in place of whatever is raised inside.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whichever layer finds the contradiction
        raise UserError(
            f"{source}: describes no network that can be built "
            f"({user_files.brief(error)}): download the model again or name another"
        ) from error


def _as_tuple(value, source, depth=0):
    if depth > 2:
        raise UserError(f"{source}: holds lists in lists: download the model again")
    return tuple(
        _as_tuple(v, source, depth + 1) if isinstance(v, list) else v for v in value
    )


_IN_WORDS = {bool: "true or false", str: "text", float: "a number", type(None): "null"}


def _what_is_wrong(name: str, value: Any, hint: Any, default: Any) -> str:
    """What an option takes, in words, if the value is something else; else nothing."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        wrong = [_what_is_wrong(name, value, each, default) for each in options]
        return " or ".join(wrong) if all(wrong) else ""
    if typing.get_origin(hint) is tuple:
        if isinstance(value, tuple) and len(value) <= _DEEPEST**2:
            wrong = (_what_is_wrong(name, v, options[0], default) for v in value)
            return next((f"a list, each {each}" for each in wrong if each), "")
        return "a list"
    if hint is int:
        # Sizes and counts begin at 1, but for what a default of 0 switches off.
        least = -1 if name.endswith("_id") else int(default != 0)
        most = _DEEPEST if "layers" in name else _LARGEST
        fits = type(value) is int and least <= value <= most
        return "" if fits else f"a whole number of {least} to {most:,}"
    if hint is float:
        fits = type(value) in (int, float) and abs(value) <= math.inf
        fits = fits and (type(value) is float or abs(value) <= _LARGEST)
        return "" if fits else _IN_WORDS[float]
    fits = type(value) is hint and (hint is not str or len(value) <= _LONGEST_NAME)
    return "" if fits else _IN_WORDS[hint]
