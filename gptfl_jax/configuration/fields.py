"""One config field: default, what it takes, help text."""

from typing import Any, NamedTuple

from gptfl_jax import choices
from gptfl_jax.rules import KEYWORDS, Rule


class Field(NamedTuple):
    """One config field.

    Attributes:
        default: its value where a config says nothing.
        rule: what it takes; of a choice the rule is made of the family.
        help: a line for `--help`.
        chooses: the family of which the field names a choice.
        options_of: the family whose choice's options the field holds.
        common: whether many set it: `--help` shows these.
    """

    default: Any
    rule: Rule
    help: str
    chooses: choices.Family | None = None
    options_of: choices.Family | None = None
    common: bool = False

    @property
    def takes(self) -> str:
        """What the field takes, in words."""
        return choices.names(self.chooses) if self.chooses else self.rule.takes

    def valid(self, value: Any) -> bool:
        """Whether the field takes a value; options are checked with their choice."""
        if self.chooses and self.rule.valid(value) and not choices.is_own(value):
            known = choices.available(self.chooses)
            return value in known or value in choices.names_alone(self.chooses)
        return self.rule.valid(value)


_CHOICE = Rule("a name", lambda value: isinstance(value, str) and value != "")


def choice(
    family: choices.Family, default: str, help: str, common: bool = False
) -> dict[str, Field]:
    """Two fields by their names: which choice of a family, and its options."""
    name = family.field.rpartition(".")[2]
    options = family.options.rpartition(".")[2]
    return {
        name: Field(default, _CHOICE, help, chooses=family, common=common),
        options: Field(
            {},
            KEYWORDS,
            f"options of {family.field}, each set as {family.options}.<option>",
            options_of=family,
        ),
    }
