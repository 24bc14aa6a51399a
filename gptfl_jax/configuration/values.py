"""Configs with their defaults, and their values by dotted name."""

import contextlib
from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import choices
from gptfl_jax.configuration.schema import SCHEMA, fields, find
from gptfl_jax.errors import ConfigError, unknown


def default_config(*sections: str) -> ConfigDict:
    """The fields without a section and the named sections of `SCHEMA`, as by default.

    The config is locked: a field that is not in `SCHEMA` cannot be set. Fields of
    keywords (`options`) stay open.
    """
    # `validate` checks types, and says what a field takes.
    config = ConfigDict(type_safe=False)
    for section in sections:
        if not isinstance(SCHEMA.get(section), dict):
            raise unknown(section, known=section_names(), what="section")
        config[section] = ConfigDict(type_safe=False)
    for dotted, field in fields(*(sections or present(config))):
        put(config, dotted, field.default)
    config.lock()
    for dotted, field in fields(*present(config)):
        if isinstance(field.default, dict):
            get(config, dotted).unlock()
    return config


def section_names() -> list[str]:
    """The sections there are."""
    return [name for name, entry in SCHEMA.items() if isinstance(entry, dict)]


def present(config: ConfigDict) -> list[str]:
    """The sections that a config has; never empty, so that `fields` is not "all"."""
    return [name for name in config.keys() if name in SCHEMA] or ["seed"]


def get(config: ConfigDict, dotted: str) -> Any:
    """The value of a field by its dotted name."""
    for name in dotted.split("."):
        config = config[name]
    return config


def put(config: ConfigDict, dotted: str, value: Any) -> None:
    """Sets a field by its dotted name, unchecked; lists become tuples.

    Of the options of a choice those stay that the new one takes as well.
    """
    section, _, key = dotted.rpartition(".")
    holder = config[section] if section else config
    if isinstance(value, dict):
        value = ConfigDict(value)
    elif isinstance(value, list):
        value = tuple(value)
    # Ours are not type safe; and to ask for it takes as long as all else here.
    free = holder.ignore_type() if holder.is_type_safe else contextlib.nullcontext()
    with free:
        holder[key] = value
    field = find(dotted)
    if field is not None and field.chooses is not None:
        _drop_options(config, field.chooses, value)


def _drop_options(config: ConfigDict, family: choices.Family, name: Any) -> None:
    """Drops the options that a choice does not take."""
    section, _, key = family.options.rpartition(".")
    options = (config[section] if section else config).get(key)
    if not options:
        return
    try:
        known = choices.options(family, choices.find(family, name))
    except ConfigError:
        return  # the checks of the config will say so
    for option in [*options.keys()]:
        if option not in known:
            del options[option]


def require_section(config: ConfigDict, dotted: str) -> None:
    """Refuses a field of a section that a config has not."""
    section, dot, _ = dotted.partition(".")
    if dot and section not in config:
        raise ConfigError(f"config.{dotted}: this config has no section `{section}`")
