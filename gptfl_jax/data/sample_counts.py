"""How many samples of each class `config.generate.samples_per_class` asks for."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptfl_jax import labels
from gptfl_jax.errors import UserError


def samples_per_class(
    wanted: Any,
    classes: Sequence[str],
    real_counts: Callable[[], Mapping[str, int]],
    source: str,
) -> dict[str, int]:
    """How many samples each class gets, in the order of `classes`.

    Args:
        wanted: a number, or as "3x" a multiple of the class's examples in the real
            training set, rounded, at least 1; or a mapping with one of these for each
            class, by its name (case, articles, `_`, `-` and spaces do not count).
        classes: their names.
        real_counts: gives the examples of each class in the real training set; called
            where a multiple is asked for.
        source: the name of the real data, for messages.

    Raises:
        UserError: a multiple is asked for, and a class is not in the real data; or the
            names are not those of the classes.
    """
    if isinstance(wanted, Mapping):
        by_class = _of_classes(wanted, classes)
    else:
        by_class = dict.fromkeys(classes, wanted)
    texts = {name: str(value) for name, value in by_class.items()}
    multiples = [name for name in classes if texts[name].endswith("x")]
    real = real_counts() if multiples else {}
    if unknown := [name for name in multiples if not real.get(name)]:
        raise UserError(
            f"config.generate.samples_per_class = {texts[unknown[0]]!r} is relative to "
            f"the real training set, but {source} has no "
            f"{', '.join(unknown)}: give a number"
        )
    counts = {name: int(text) for name, text in texts.items() if name not in multiples}
    for name in multiples:
        ratio = float(texts[name].removesuffix("x"))
        counts[name] = max(1, math.floor(ratio * real[name] + 0.5))
    return {name: counts[name] for name in classes}


def _of_classes(wanted: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Each class's entry, under a name that need not be spelled as the class."""
    found = {c: [n for n in wanted if labels.same_name(n, c)] for c in classes}
    used = {name for names in found.values() for name in names}
    unclear = [name for name in classes if len(found[name]) != 1]
    foreign = [name for name in wanted if name not in used]
    if unclear or foreign:
        names = ", ".join(unclear or foreign)
        fault = f"{names} must be named, once" if unclear else f"no class is {names}"
        raise UserError(
            f"config.generate.samples_per_class: {fault}; the prompts' classes are "
            + ", ".join(classes)
        )
    return {name: wanted[names[0]] for name, names in found.items()}
