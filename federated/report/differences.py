"""Differences between methods, and how sure they are: paired over seeds."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from federated.report.runs import Method

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Of the accuracy after the last round, of a method less that of another."""

    mean: float
    low: float | None
    """Of the confidence interval of the mean; None of a single seed."""
    high: float | None
    p: float | None
    """Of no difference, two-sided; None of a single seed."""


def paired(differences: Float[np.ndarray, " seeds"]) -> Difference:
    r"""The paired t-test (Student 1908): each seed gives one difference $d$.

    With mean $\bar d$ and sample standard deviation $s$ of $n$ differences,
    $t = \bar d \sqrt n / s$ has $n - 1$ degrees of freedom, and the interval is
    $\bar d \pm t_{0.975, n - 1} s / \sqrt n$. Where all differences are equal the
    interval is a point.
    """
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return Difference(mean, None, None, None)
    error = float(np.std(differences, ddof=1)) / count**0.5
    width = error * float(special.stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    if error > 0:
        p = 2 * float(special.stdtr(count - 1, -abs(mean) / error))
    else:
        p = float(mean == 0)
    return Difference(mean, mean - width, mean + width, p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979), in the order given.

    The i-th smallest of m is multiplied by m - i + 1; none is below a smaller one's.
    """
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(np.asarray(values)[order] * factors)
    return np.minimum(adjusted, 1.0).tolist()


def of_methods(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """The differences to show, by a method's name, as in report.json.

    Only methods of one task are compared. From every other start a method is compared
    with the same one from scratch. Where no method was run from both, all are compared
    with the one of the highest mean.
    """
    tasks: dict[str, list[Method]] = {}
    for method in methods:
        tasks.setdefault(json.dumps(method.task, sort_keys=True), []).append(method)
    others: dict[str, Method] = {}
    for alike in tasks.values():
        others |= _others(alike)
    found = {}
    for method in methods:
        other = others.get(method.name)
        if other is None:
            continue
        ours, theirs = _accuracies(method), _accuracies(other)
        of_seeds: dict[int, list[float]] = {}
        for seed, turn in sorted(ours.keys() & theirs.keys()):
            each = ours[seed, turn] - theirs[seed, turn]
            of_seeds.setdefault(seed, []).append(each)
        if of_seeds:
            each = np.array([np.mean(each) for each in of_seeds.values()])
            found[method.name] = {
                "to": other.name,
                "seeds": [*of_seeds],
                **paired(each)._asdict(),
            }
    tested = [row for row in found.values() if row["p"] is not None]
    for row in found.values():
        row["p_holm"] = None
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return found


def _others(methods: Sequence[Method]) -> dict[str, Method]:
    """With which other each method of a task is compared, by the method's name."""
    others = {
        method.name: other
        for method in methods
        if (other := _from_scratch(method, methods)) is not None
    }
    if others:
        return others
    best = max(methods, key=lambda m: float(np.mean(list(_accuracies(m).values()))))
    return {method.name: best for method in methods if method is not best}


def _from_scratch(method: Method, methods: Sequence[Method]) -> Method | None:
    """The method that differs in its start, and what is tuned for it; None of none.

    Of several it is the one with the same options of the algorithm, rates aside.
    """
    if method.init == "random":
        return None
    for keys in (_setting, _setting_and_options):
        found = [m for m in methods if m.init == "random" and keys(m) == keys(method)]
        if len(found) == 1:
            return found[0]
    return None


def _setting(method: Method) -> dict[str, Any]:
    """All that a method is, but for its start and the options of its algorithm."""
    return {
        field: value
        for field, value in _setting_and_options(method).items()
        if not field.startswith("federated.algorithm_options")
    }


def _setting_and_options(method: Method) -> dict[str, Any]:
    return {
        field: value
        for field, value in method.runs[0].method_fields.items()
        if not field.endswith("_rate")
        and field not in ("federated.init", "model.weights")
    }


def _accuracies(method: Method) -> dict[tuple[int, str], float]:
    """The accuracy after the last round, by seed and turn."""
    return {
        (run.config["seed"], run.turn): next(
            line["accuracy"] for line in reversed(run.metrics) if "accuracy" in line
        )
        for run in method.runs
    }
