"""Fields of `config.compare`."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gptfl_jax import rules
from gptfl_jax.configuration.fields import Field
from gptfl_jax.errors import ConfigError

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
        common=True,
    ),
    "starts": Field(
        {},
        _STARTS,
        "each method is run from each of these starts: random, synthetic, procedural, "
        "imagenet, or a name with its own init; and how methods differ there, as "
        "{'random': {}, 'synthetic': {'fedavg': {'client_learning_rate': 0.1}}}; "
        "empty: each from its own init",
        common=True,
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
        "each method is run with each seed, as 0,1,2; a number alone is one seed",
        common=True,
    ),
    "grid": Field(
        (),
        rules.NAMES,
        "what federated.sweep varies, a line a field, as "
        "'federated.client_learning_rate=0.03,0.1,0.3', or with trials a range, "
        "'federated.client_learning_rate=0.01..3'",
    ),
    "trials": Field(
        0,
        rules.whole(0),
        "points of the grid that federated.sweep draws at random; 0: it runs all",
    ),
    "validation_fraction": Field(
        0.2,
        rules.number(least=0, below=1),
        "share of the clients' examples that federated.sweep measures by, held out of "
        "their training; 0: the test set, which must then be reported nowhere",
    ),
}


class Method(NamedTuple):
    """A method of a comparison."""

    name: str
    place: str
    """Of the field that says most about it."""
    changes: dict[str, Any]
    """Of `config.federated`."""


def methods_of(config: ConfigDict) -> list[Method]:
    """The methods, each from each start.

    Raises:
        ConfigError: a start changes a method that there is not.
    """
    compare = config.compare
    named = {name: dict(changes) for name, changes in compare.methods.items()}
    if not compare.starts:
        return [
            Method(name, f"compare.methods.{name}", changes)
            for name, changes in named.items()
        ]
    result = []
    for start, changes in compare.starts.items():
        of_method = {name: dict(of) for name, of in changes.items() if name != "init"}
        for name in of_method:
            if name not in named:
                raise ConfigError(
                    f"config.compare.starts.{start}.{name}: no such method; there are "
                    f"init, {', '.join(named)}"
                )
        init = changes.get("init", start)
        for name, usual in named.items():
            own = of_method.get(name, {})
            place = f"starts.{start}.{name}" if own else f"methods.{name}"
            every = {**usual, "init": init, **own}
            result.append(Method(f"{name}-{start}", f"compare.{place}", every))
    return result
