"""The points of a sweep: all of a grid, or drawn from it at random.

A line of the grid is an axis: a field and its values, as
`federated.algorithm=fedavg,moon`, or a range, `federated.client_learning_rate=0.01..3`,
from which values are drawn evenly on a log scale. An option that the choice at a point
does not take is left out there, and points that are then the same are one.
"""

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gptfl_jax import choices, configuration
from gptfl_jax.configuration import text
from gptfl_jax.configuration.schema import find
from gptfl_jax.errors import ConfigError

_RANGE = re.compile(r"([\d.eE+-]*\d)\s*\.\.\s*(\d[\d.eE+-]*)")
# Of the axes, what may differ: the rest is the machine's or the program's.
_SECTIONS = ("federated", "model", "data")
_LONGEST = 90


class Axis(NamedTuple):
    """What is varied.

    Attributes:
        dotted: the field, as "federated.client_learning_rate".
        values: as texts; of a range empty.
        low, high: of a range.
    """

    dotted: str
    values: tuple[str, ...]
    low: float = 0.0
    high: float = 0.0

    @property
    def label(self) -> str:
        """The last part of the field's name."""
        return self.dotted.rpartition(".")[2]


class Point(NamedTuple):
    """One combination.

    Attributes:
        name: that the folders of its runs begin with.
        values: a text by field, of the axes that count here.
        config: the sweep's, so changed.
    """

    name: str
    values: dict[str, str]
    config: ConfigDict


def axes(config: ConfigDict) -> list[Axis]:
    """The axes of `compare.grid`.

    Raises:
        ConfigError: a line is none, names a field twice or one that cannot be varied;
            or a range with nothing drawn.
    """
    found: dict[str, Axis] = {}
    for line in config.compare.grid:
        dotted, equals, values = (part.strip() for part in line.partition("="))
        dotted = dotted.removeprefix("config.")
        refusal = f"config.compare.grid, {line!r}: "
        if not equals or not text.split(values):
            raise ConfigError(
                refusal + "takes field=value,value as federated.init=random,synthetic, "
                "or a range as federated.client_learning_rate=0.01..3"
            )
        if dotted.partition(".")[0] not in _SECTIONS or dotted == "federated.run":
            raise ConfigError(
                refusal + f"takes fields of {', '.join(_SECTIONS)}, not {dotted}"
            )
        if dotted in found:
            raise ConfigError(refusal + "this field has a line already")
        found[dotted] = _axis(config, dotted, values, refusal)
    return [*found.values()]


def _axis(config: ConfigDict, dotted: str, values: str, refusal: str) -> Axis:
    between = _RANGE.fullmatch(values)
    if between is None:
        return Axis(dotted, tuple(dict.fromkeys(text.split(values))))
    try:
        low, high = map(float, between.groups())
    except ValueError:
        low = high = 0.0
    if not 0 < low < high < math.inf:
        raise ConfigError(refusal + "a range takes two numbers, 0 < low..high")
    if not config.compare.trials:
        raise ConfigError(
            refusal + "a range is drawn from: set config.compare.trials (--trials=N), "
            "or list its values"
        )
    return Axis(dotted, (), low, high)


def points(config: ConfigDict) -> list[Point]:
    """The points of a config's sweep, in the order of the grid or of the draws.

    Raises:
        ConfigError: as `axes`; a value that a field does not take, or an option that
            is taken at no point.
    """
    found = axes(config)
    if not found:
        raise ConfigError(
            "config.compare.grid is empty: name what to vary, as --grid "
            "federated.algorithm=fedavg,fedprox"
        )
    if config.compare.trials:
        combinations = _drawn(config, found)
    else:
        combinations = itertools.product(*(axis.values for axis in found))
    unique: dict[tuple, tuple[dict[str, str], ConfigDict]] = {}
    for values in combinations:
        changed, kept = _changed(config, found, values)
        unique.setdefault(tuple(kept.items()), (kept, changed))
    for axis in found:
        if not any(axis.dotted in kept for kept, _ in unique.values()):
            raise ConfigError(
                f"config.compare.grid, {axis.dotted}: taken at no point of the grid; "
                f"see the options of its choices with --help={axis.dotted}"
            )
    varied = [axis.dotted for axis in found if len(axis.values) != 1]
    return [
        Point(_name(kept, varied), kept, changed) for kept, changed in unique.values()
    ]


def _drawn(config: ConfigDict, found: Sequence[Axis]) -> Iterator[list[str]]:
    """Texts of the axes, a list a trial; more trials begin with those of fewer."""
    for trial in range(config.compare.trials):
        generator = np.random.default_rng([config.seed, trial])
        values = []
        for axis in found:
            if axis.values:
                values.append(axis.values[generator.integers(len(axis.values))])
                continue
            share = generator.uniform(math.log(axis.low), math.log(axis.high))
            values.append(f"{float(f'{math.exp(share):.3g}'):g}")
        yield values


def _changed(
    config: ConfigDict, found: Sequence[Axis], values: Sequence[str]
) -> tuple[ConfigDict, dict[str, str]]:
    """A config with the values of a point, and those of them that it takes."""
    changed = copy.deepcopy(config)
    kept = {}

    def is_choice(dotted: str) -> bool:
        field = find(dotted)
        return field is not None and field.chooses is not None

    for first in (True, False):
        for axis, value in zip(found, values, strict=True):
            dotted = axis.dotted
            known = _options_beside(changed, dotted)
            if is_choice(dotted) != first or not (known is None or axis.label in known):
                continue
            rule = find(dotted) if known is None else known[axis.label].rule
            if not axis.values and rule is not None:
                value = _as_taken(value, rule.valid)
            configuration.set_text(changed, dotted, value)
            kept[dotted] = value
    order = [axis.dotted for axis in found if axis.dotted in kept]
    return changed, {dotted: kept[dotted] for dotted in order}


def _options_beside(
    config: ConfigDict, dotted: str
) -> Mapping[str, choices.Option] | None:
    """The options of the choice that a field is an option of; None: it is of none."""
    field = find(dotted.rpartition(".")[0])
    if field is None or field.options_of is None:
        return None
    chosen = choices.find(
        field.options_of, configuration.get(config, field.options_of.field)
    )
    return choices.options(field.options_of, chosen)


def _as_taken(drawn: str, valid: Callable[[Any], bool]) -> str:
    """A number drawn, rounded where 7 is taken and 7.0 is not."""
    whole = round(float(drawn))
    return str(whole) if valid(whole) and not valid(float(whole)) else drawn


def _name(values: Mapping[str, str], varied: Sequence[str]) -> str:
    """A name for folders, another for other values: `fedavg-0.1-3fa2`."""
    shown = [values[dotted] for dotted in varied if dotted in values]
    parts = (re.sub(r"[^\w.+-]+", "_", value).strip("._-") for value in shown)
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:6]
    stem = "-".join(part[-40:] for part in parts if part)[:_LONGEST] or "point"
    return f"{stem}-{digest}"
