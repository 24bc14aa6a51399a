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

_STARTS = rules.Rule(
    "{'name': {'init': what federated.init takes, 'method': {field: value}}}",
    lambda value: (
        isinstance(value, dict | ConfigDict)
        and all(
            rules.FOLDER_NAME.valid(name)
            and isinstance(changes, dict | ConfigDict)
            and all(
                rules.NAME.valid(of)
                if key == "init"
                else isinstance(of, dict | ConfigDict)
                for key, of in changes.items()
            )
            for name, changes in value.items()
        )
    ),
)

FIELDS: dict[str, Field] = {
    "methods": Field(
        {},
        _METHODS,
        "methods that federated.compare runs, by the fields in which they differ",
    ),
    "starts": Field(
        {},
        _STARTS,
        "each method is run from each of these starts: random, synthetic, procedural, "
        "imagenet, or a name with its own init; and how methods differ there, as "
        "{'random': {}, 'synthetic': {'fedavg': {'client_learning_rate': 0.1}}}; "
        "empty: each from its own init",
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
