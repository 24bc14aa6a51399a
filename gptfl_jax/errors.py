"""The errors that a user can mend, and how they are worded."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """The user can mend this: the message names the field or file and the remedy.

    A program prints it as one line without a traceback.
    """


class ConfigError(UserError):
    """A config field that does not exist, or a value it does not take."""


def refused(dotted: str, value: Any, takes: str) -> ConfigError:
    """The error for a field's value: `takes` says what it should be."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    return ConfigError(f"config.{dotted} = {shown(value)}: takes {takes}")


def shown(value: Any) -> str:
    """A value as a message shows it, not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python writes
        text = f"a number of {value.bit_length()} bits"
    return text if len(text) <= 160 else f"{text[:140]}... ({len(text):,} characters)"


def nearest(name: str, known: Iterable[str]) -> str:
    """The one of `known` that a misspelt name must mean; empty: there is none such."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if near:
        return near[0]
    # config.rounds for config.federated.rounds, or the right name elsewhere.
    by_key = {entry.rpartition(".")[2]: entry for entry in known}
    key = name.rpartition(".")[2]
    near = difflib.get_close_matches(key, by_key, n=1, cutoff=0.75)
    return by_key[near[0]] if near else ""


def unknown(
    name: str, known: Iterable[str], what: str = "field", prefix: bool = False
) -> ConfigError:
    """The error for a name that is none of `known`: it offers the nearest, or all."""
    known = list(known)
    dot = "config." if prefix else ""
    if near := nearest(name, known):
        hint = f"did you mean {dot}{near}?"
    else:
        section, inside, _ = name.partition(".")
        siblings = [entry for entry in known if entry.startswith(section + ".")]
        if not (inside and siblings):
            # The sections say enough where not even the section is known.
            siblings = dict.fromkeys(entry.partition(".")[0] for entry in known)
        hint = "there are " + ", ".join(dot + entry for entry in siblings)
    return ConfigError(f"{dot}{name}: no such {what}; {hint}")
