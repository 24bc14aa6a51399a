"""Fields of `config.compare`."""

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field

_METHODS = rules.Rule(
    "{'name': {field of config.federated: value}}",
    lambda value: (
        isinstance(value, dict | ConfigDict)
        and all(
            rules.FOLDER_NAME.valid(name) and isinstance(changes, dict | ConfigDict)
            for name, changes in value.items()
        )
    ),
)
_TURNS = rules.Rule(
    "{'name': {keyword of config.data.options: value}}",
    lambda value: (
        isinstance(value, dict | ConfigDict)
        and all(
            rules.FOLDER_NAME.valid(name)
            and bool(options)
            and rules.KEYWORDS.valid(options)
            for name, options in value.items()
        )
    ),
)

FIELDS: dict[str, Field] = {
    "methods": Field(
        {},
        _METHODS,
        "methods that federated.compare runs, by the fields in which they differ",
    ),
    "data": Field(
        {},
        _TURNS,
        "turns: each method is run with each of these changes of data.options, as "
        "{'theo': {'test_speakers': 'theo'}, ...}; empty: with data.options alone",
    ),
    "seeds": Field(
        (0, 1, 2),
        rules.tuple_of(rules.SEED, "whole numbers >= 0 and < 2**32"),
        "each method is run with each seed",
    ),
}
