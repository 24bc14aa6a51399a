"""Fields as text: the command line, and the string behind a config file's name."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from gptfl_jax.configuration.fields import Field
from gptfl_jax.configuration.renamed import no_such_field
from gptfl_jax.configuration.schema import fields, find
from gptfl_jax.configuration.values import (
    get,
    present,
    put,
    require_section,
    section_names,
)
from gptfl_jax.errors import ConfigError, refused, unknown
from gptfl_jax.rules import KEYWORDS


def apply_arguments(
    config: ConfigDict, arg: str, aliases: Mapping[str, str]
) -> ConfigDict:
    """Applies a config string to a config.

    Args:
        config: what a config file built.
        arg: `name=value` pairs separated by commas: what follows the colon in
            `--config=configs/digits.py:alpha=0.5,init=random`. May be empty.
        aliases: the names the string may use, and the dotted field each one sets.

    Returns:
        The config itself, changed.

    Raises:
        ConfigError: a name that `aliases` lacks, or a value the field does not take.
    """
    texts = []
    for pair in split(arg):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise ConfigError(
                f"config string '{pair}': takes name=value pairs separated by commas"
            )
        if name not in aliases:
            raise unknown(name, known=aliases, what="name in the config string")
        texts.append((aliases[name], value))
    set_texts(config, texts)
    return config


def set_texts(config: ConfigDict, texts: Sequence[tuple[str, str]]) -> None:
    """Sets fields from texts, as `set_text`: what chooses before what has options."""

    def is_option(item: tuple[str, str]) -> bool:
        field = find(item[0])
        return field is None or field.chooses is None

    for dotted, text in sorted(texts, key=is_option):
        set_text(config, dotted, text)


def set_text(config: ConfigDict, dotted: str, text: str) -> None:
    """Sets a field of a config from text, as the command line gives it.

    `dotted` is a field of `SCHEMA` ("federated.rounds") or a keyword below a field of
    keywords ("federated.client_options.momentum").

    Raises:
        ConfigError: no such field, or a value that it does not take.
    """
    parent, _, keyword = dotted.rpartition(".")
    field = find(parent) if find(dotted) is None else None
    if field is not None and field.takes == KEYWORDS.takes:
        if not keyword.isidentifier():
            raise ConfigError(f"config.{dotted}: {keyword!r} is not a keyword")
        require_section(config, parent)
        get(config, parent)[keyword] = _literal(text)
        return
    field = find(dotted)
    if field is None:
        if dotted in section_names():
            names = ", ".join(name for name, _ in fields(dotted) if "." in name)
            raise ConfigError(f"config.{dotted} is a section; its fields are {names}")
        raise no_such_field(dotted, [name for name, _ in fields(*present(config))])
    require_section(config, dotted)
    put(config, dotted, _parse(dotted, field, text))


def _literal(text: str) -> Any:
    """The value a text stands for: a Python literal, or else the text itself."""
    lowered = text.strip().lower()
    if lowered in ("true", "false"):
        return lowered == "true"
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text  # the last two: thousands of brackets


def _parse(dotted: str, field: Field, text: str) -> Any:
    """The first reading of `text` that the field takes."""
    value = _literal(text)
    readings = [value, text]
    if isinstance(field.default, tuple):
        # --config.report.runs=a,b and =a need no quotes, brackets or closing comma.
        parts = split(text)
        readings = [value, tuple(map(_literal, parts)), tuple(parts)]
    for reading in readings:
        if field.valid(reading):
            is_float = isinstance(field.default, float)
            return float(reading) if is_float else reading
    raise refused(dotted, value, field.takes)


def split(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets and quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
