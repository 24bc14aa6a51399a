"""The curves and other pictures of the report, in the order of its page."""

import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from federated import pictures, run_files
from federated.report import tables
from federated.report.cost import until_each_line
from federated.report.rows import row_of
from federated.report.runs import SYNTHETIC_ONLY, Method, Run, curve

# Up to so many methods have bands over seeds, over clients, and a legend.
_MOST_WITH_BANDS, _MOST_WITH_CLIENT_BANDS, _MOST_IN_LEGEND = 12, 6, 8

START_STYLE = {"color": pictures.GREY, "linestyle": (0, (1, 1.5))}
"""Of the starting weights."""


def learning_curves(
    methods: Sequence[Method],
    start: Method | None,
    targets: Sequence[float],
    alone: bool = False,
) -> Figure:
    """Test accuracy over rounds, all methods, with their spread over seeds.

    Args:
        alone: the picture goes without the tables, and names the methods in any case.
    """
    figure, axes = pictures.axes("round", "test accuracy, %")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    style = styles(methods)
    for target in targets:
        axes.axhline(target, color="#c9d0d6", linewidth=0.9)
    if start is not None:
        accuracy = row_of(start, ())["accuracy_mean"]
        axes.axhline(accuracy, linewidth=1.4, label=SYNTHETIC_ONLY, **START_STYLE)
    for method in methods:
        _draw(axes, method, style[method.name], "accuracy", band=have_bands(methods))
    axes.set_ylim(0, 1.01)
    _axis_of_rounds(axes, methods)
    named = len(axes.get_legend_handles_labels()[0])
    if alone and named > _MOST_IN_LEGEND:
        _legend_below(figure, axes)
    else:
        _legend(axes, loc="lower right")
    return figure


def cost_curves(methods: Sequence[Method]) -> Figure | None:
    """Test accuracy over all floating-point operations until then, means over runs.

    A line begins at what generating and training have cost before the first round.
    None where no method's cost is known.
    """
    figure, axes = pictures.axes("floating-point operations in all", "test accuracy, %")
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    style = styles(methods)
    for method in methods:
        points = [_accuracy_by_cost(run) for run in method.runs]
        if not points[0] or any(len(each) != len(points[0]) for each in points):
            continue
        spent, accuracy = np.array(points, np.float64).mean(0).T
        how = style[method.name]
        name = pictures.text(method.name)
        axes.plot(spent, accuracy, linewidth=1.4, label=name, **how)
        axes.plot(spent[-1], accuracy[-1], "o", color=how["color"], markersize=4)
    if not axes.lines:
        return None
    axes.set_xscale("log")
    axes.set_ylim(0, 1.01)
    if len(axes.get_legend_handles_labels()[0]) > _MOST_IN_LEGEND:
        _legend_below(figure, axes)
    else:
        _legend(axes, loc="lower right")
    return figure


def _accuracy_by_cost(run: Run) -> list[tuple[float, float]]:
    """(operations, accuracy) of the evaluated rounds whose cost is known, and not 0."""
    costs = until_each_line(run)
    return [
        (each.total, line["accuracy"])
        for each, line in zip(costs, run.metrics, strict=True)
        if each.total and "accuracy" in line
    ]


def starts(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """A heat map of accuracy: methods by starts; None where there is no such table."""
    found = tables.starts_of(rows)
    if found is None:
        return None
    methods, inits, cells = found
    values = np.full((len(methods), len(inits)), np.nan)
    for (method, init), row in cells.items():
        values[methods.index(method), inits.index(init)] = row["accuracy_mean"]
    size = 3.6 + 1.0 * len(inits), 1.1 + 0.38 * len(methods)
    figure, axes = pictures.axes("start", "", size)
    shown = axes.imshow(values, cmap="YlGnBu", aspect="auto")
    names = [textwrap.fill(pictures.text(name), 34) for name in methods]
    axes.set_yticks(range(len(methods)), names, fontsize=7.5)
    starts = [textwrap.fill(pictures.text(name), 16) for name in inits]
    axes.set_xticks(range(len(inits)), starts, fontsize=7.5)
    axes.grid(visible=False)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            how = {"color": "w" if value > middle else "k", "fontsize": 8}
            text = f"{100 * value:.1f}"
            axes.text(column, row, text, ha="center", va="center", **how)
    percent = matplotlib.ticker.PercentFormatter(1, symbol="")
    figure.colorbar(shown, format=percent, label="test accuracy, %")
    return figure


def metric_curves(
    methods: Sequence[Method],
    field: str,
    label: str,
    *,
    logarithmic: bool = False,
    spread: tuple[str, str] | None = None,
) -> Figure | None:
    """One metric over rounds, or None where no run measured it.

    Without a legend: that of `learning_curves` and the tables show each method's line.
    """
    figure, axes = pictures.axes("round", label)
    style = styles(methods)
    band = have_client_bands(methods) if spread else have_bands(methods)
    drawn = [
        _draw(
            *(axes, method, style[method.name], field),
            logarithmic=logarithmic,
            spread=spread,
            band=band,
        )
        for method in methods
    ]
    if not any(drawn):
        return None
    if logarithmic:
        pictures.logarithmic(axes)
    _axis_of_rounds(axes, methods)
    return figure


def client_accuracy_curves(
    methods: Sequence[Method], what: str, label: str
) -> Figure | None:
    """Accuracy of clients over rounds, pale before and full after fine-tuning.

    Of many methods only after it.

    Args:
        what: "mean" or "worst_decile".
    """
    figure, axes = pictures.axes("round", label)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    style = styles(methods)
    drawn = []
    for method in methods:
        line = axes, method, style[method.name]
        if have_bands(methods):
            before = {"label": "_", "linewidth": 1.2, "alpha": 0.45, "band": False}
            _draw(*line, f"client_accuracy_{what}", **before)
        drawn.append(
            _draw(*line, f"personalised_accuracy_{what}", band=have_bands(methods))
        )
    if not any(drawn):
        return None
    axes.set_ylim(0, 1.01)
    _axis_of_rounds(axes, methods)
    return figure


def client_accuracies(
    method: Method, workdir: pathlib.Path
) -> tuple[np.ndarray, np.ndarray] | None:
    """(before, after fine-tuning) of the clients of all seeds, at their last test."""
    before, after = [], []
    for run in method.runs:
        found = run_files.read_client_accuracy(workdir / "federated" / run.folder)
        if found is not None:
            before.append(found[0])
            after.append(found[1])
    return (np.concatenate(before), np.concatenate(after)) if before else None


def client_accuracy_histograms(
    methods: Sequence[Method], workdir: pathlib.Path
) -> Figure | None:
    """A row a method: histogram after fine-tuning upwards, before it downwards."""
    found = [(method, client_accuracies(method, workdir)) for method in methods]
    found = [(method, pair) for method, pair in found if pair is not None]
    if not found:
        return None
    names = [textwrap.fill(pictures.text(m.name), 34) for m, _ in found]
    figure, axes = pictures.axes(
        "accuracy of a client on its held-out examples, %",
        "",
        (6.4, 1.1 + 0.62 * len(found)),
    )
    style, edges = styles(methods), np.linspace(0, 1, 21)
    for row, (method, pair) in enumerate(found):
        shares = [np.histogram(x, edges)[0] / len(x) for x in pair]
        height = 0.42 / max(share.max() for share in shares)
        colours = pictures.GREY, style[method.name]["color"]
        signs = (1, -1)  # the axis grows downwards
        for values, share, colour, sign in zip(
            pair, shares, colours, signs, strict=True
        ):
            axes.bar(
                edges[:-1],
                sign * height * share,
                bottom=row,
                width=0.046,
                align="edge",
                color=colour,
                alpha=0.75,
            )
            mean = np.mean(values)
            axes.plot([mean, mean], [row, row + 0.46 * sign], color="k", linewidth=1.6)
    axes.set_yticks(range(len(found)), names, fontsize=7.5)
    axes.set_ylim(len(found) - 0.45, -0.55)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    axes.grid(axis="y", visible=False)
    return figure


def have_bands(methods: Sequence[Method]) -> bool:
    """Whether the curves show their spread over seeds: few can be told apart."""
    return len(methods) <= _MOST_WITH_BANDS


def have_client_bands(methods: Sequence[Method]) -> bool:
    """Whether curves show a spread over the clients of a round, which is wider."""
    return len(methods) <= _MOST_WITH_CLIENT_BANDS


_HUES = (
    *("#0b6bcb", "#d9480f", "#2b8a3e", "#7048c6", "#c2255c", "#5c6b00"),
    *("#0c8599", "#f08c00", "#7f4f24", "#c77dff"),
)
_SOLID = ("solid", (0, (8, 1)), (0, (12, 2, 2, 2)))
_DASHED = ((0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


def styles(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """A hue an algorithm; synthetic starts solid, others dashed or dotted.

    Where that leaves too many of one hue (a grid of settings), a hue a method.
    """
    algorithms = list(dict.fromkeys(method.algorithm for method in methods))
    kinds = [method.init == "synthetic" for method in methods]
    alike = [
        (method.algorithm, kind) for method, kind in zip(methods, kinds, strict=True)
    ]
    crowded = max(map(alike.count, alike), default=0) > len(_SOLID)
    style = {}
    for index, (method, kind) in enumerate(zip(methods, kinds, strict=True)):
        patterns = _SOLID if kind else _DASHED
        if crowded:
            nth = kinds[:index].count(kind)
            hue, pattern = nth % len(_HUES), nth // len(_HUES)
        else:
            hue = algorithms.index(method.algorithm) % len(_HUES)
            pattern = alike[:index].count(alike[index])
        style[method.name] = {
            "color": _HUES[hue],
            "linestyle": patterns[pattern % len(patterns)],
        }
    return style


def _draw(
    axes: Axes,
    method: Method,
    style: dict[str, Any],
    field: str,
    *,
    logarithmic: bool = False,
    spread: tuple[str, str] | None = None,
    band: bool = True,
    **options: Any,
) -> bool:
    """A line for the mean over runs, a band of one standard deviation over seeds.

    Each line is thinner than those below it: one that it covers shows at its edges.

    On a logarithmic axis they are those of the logarithm: a band never reaches 0.

    Args:
        spread: the fields that give the band in place of that: its half width, and what
          it does not go below.
        options: of the line.
    """
    curves = [curve(run, field) for run in method.runs]
    if logarithmic:
        curves = [(rounds[v > 0], v[v > 0]) for rounds, v in curves]
    shared = set.intersection(*(set(rounds.tolist()) for rounds, _ in curves))
    if not shared:
        return False
    rounds = np.array(sorted(shared))

    def of_seeds(field: str) -> np.ndarray:
        found = [curve(run, field) for run in method.runs]
        values = [v[np.isin(r, rounds)] for r, v in found]
        return np.stack(method.by_seed(values)).astype(np.float64)

    values = of_seeds(field)
    if spread is not None:
        mean, (width, least) = values.mean(0), map(of_seeds, spread)
        low, high = np.maximum(mean - width.mean(0), least.min(0)), mean + width.mean(0)
    else:
        to_scale, back = (np.log, np.exp) if logarithmic else (np.asarray, np.asarray)
        values = to_scale(values)
        mean = values.mean(0)
        std = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(mean))
        mean, low, high = back(mean), back(mean - std), back(mean + std)
    # A single round is a point, which a line would not show.
    marker = "o" if len(rounds) == 1 else None
    line = {
        "label": pictures.text(method.name),
        "linewidth": 1.8,
        "marker": marker,
        **options,
    }
    # Where lines coincide, one beneath shows on both sides of the one above, or, of
    # another pattern, in its gaps.
    pattern = str(style["linestyle"])
    beneath = sum(other.get_gid() == pattern for other in axes.lines)
    line["linewidth"] *= max(0.75, 1.9 - 0.5 * beneath)
    axes.plot(rounds, mean, gid=pattern, **line, **style)
    if band and (high > low).any():
        axes.fill_between(
            rounds, low, high, color=style["color"], alpha=0.13, linewidth=0
        )
    return True


def _legend(axes: Axes, **options: Any) -> None:
    if len(axes.get_legend_handles_labels()[0]) > _MOST_IN_LEGEND:
        return  # it would cover the curves; the tables show each method's line
    axes.legend(
        fontsize=8.5, handlelength=3.2, framealpha=0.8, edgecolor="none", **options
    )


def _legend_below(figure: Figure, axes: Axes) -> None:
    """A legend of any length, for a picture that has to stand alone."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [textwrap.fill(label, 48) for label in labels]
    lines = sum(label.count("\n") + 1 for label in labels)
    width, height = figure.get_size_inches()
    figure.set_size_inches(1.25 * width, height + 0.075 * lines + 0.2)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        fontsize=7.5,
        handlelength=3.2,
        frameon=False,
    )


def _axis_of_rounds(axes: Axes, methods: Sequence[Method]) -> None:
    """The same axis under all curves of a report."""
    last = max(run.done for method in methods for run in method.runs)
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
