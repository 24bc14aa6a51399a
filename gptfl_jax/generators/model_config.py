"""Reading and writing the `config.json` of a released model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from gptfl_jax.configuration import UserError

Config = TypeVar("Config", bound="ModelConfig")


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
          UserError: for an option that this port does not compute.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        options = {}
        for name, value in data.items():
            if isinstance(value, list):
                value = _as_tuple(value)
            if name in names:
                options[name] = value
            elif name in cls.fixed:
                if value not in cls.fixed[name]:
                    known = " or ".join(repr(v) for v in cls.fixed[name])
                    raise UserError(
                        f"{source}: {name} = {value!r}, but {cls.__name__} supports "
                        f"only {known}: choose another model"
                    )
            elif (
                cls.without_effect is not None
                and name not in cls.without_effect
                and not name.startswith("_")
                and value not in (None, False)
            ):
                raise UserError(
                    f"{source}: {name} = {value!r} is not an option that "
                    f"{cls.__name__} knows: choose another model"
                )
        return cls(**options)

    def to_json(self) -> dict[str, Any]:
        """The options as they stand in a `config.json` that PyTorch's class reads."""
        options = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in options.items()
        }


def _as_tuple(value):
    return tuple(_as_tuple(v) if isinstance(v, list) else v for v in value)
