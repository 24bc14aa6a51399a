"""The curves and other pictures of the report.

A method is told by three things at once: its hue, its marker, and how its line is
broken. The hues differ for those who see no red, no green or no blue, and the other
two are left in grey.
"""

import functools
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.font_manager
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from federated import pictures, run_files
from federated.report import tables
from federated.report.cost import until_each_line
from federated.report.rows import row_of
from federated.report.runs import (
    SYNTHETIC_ONLY,
    Method,
    Run,
    algorithm_name,
    curve,
    synthetic_only,
)

# Up to so many methods have bands over seeds, over clients, and a legend.
_MOST_WITH_BANDS, _MOST_WITH_CLIENT_BANDS, _MOST_IN_LEGEND = 12, 6, 8

START_STYLE = {"color": pictures.GREY, "linestyle": (0, (1, 1.5))}
"""Of the starting weights."""


def every(
    methods: Sequence[Method],
    rows: Sequence[dict[str, Any]],
    targets: Sequence[float],
    workdir: pathlib.Path,
    alone: bool = False,
) -> dict[str, Figure | None]:
    """The figures by their name in the template; None where nothing was measured.

    Args:
        rows: as in report.json.
        targets: accuracies to draw lines at.
        alone: as of `learning_curves`, for all of them.
    """
    first = methods[0].runs[0]
    partition = run_files.read_partition(workdir / "federated" / first.folder)
    curves = functools.partial(metric_curves, methods, alone=alone)
    accuracy = functools.partial(client_accuracy_curves, methods, alone=alone)
    return {
        "accuracy": learning_curves(methods, synthetic_only(methods), targets, alone),
        "cost": cost_curves(methods, alone),
        "starts": starts(rows),
        "loss": curves("loss", "test loss (cross-entropy)", logarithmic=True),
        "gradient_diversity": curves(
            "gradient_diversity", "gradient diversity", logarithmic=True
        ),
        "cosine": curves("cosine_mean", "cosine to the mean update"),
        "update_norm": curves(
            "update_norm_mean",
            "norm of a client's update",
            logarithmic=True,
            spread=("update_norm_std", "update_norm_min"),
        ),
        "drift": curves("drift", "distance from the start"),
        "client_accuracy": accuracy("mean", "accuracy of clients, %"),
        "worst_clients": accuracy("worst_decile", "accuracy of the worst tenth, %"),
        "client_histograms": client_accuracy_histograms(methods, workdir),
        "partition": None if partition is None else pictures.partition(*partition),
    }


def learning_curves(
    methods: Sequence[Method],
    start: Method | None,
    targets: Sequence[float],
    alone: bool = False,
) -> Figure:
    """Test accuracy over rounds, all methods, with their spread over seeds.

    Args:
        alone: the picture goes without the tables, and names the methods below it.
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
    _name_lines(figure, axes, alone, loc="lower right")
    return figure


def cost_curves(methods: Sequence[Method], alone: bool = False) -> Figure | None:
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
        line = _marked(how, len(spent), 0) | {"markevery": [len(spent) - 1]}
        axes.plot(
            spent, accuracy, linewidth=0.8 * pictures.line_width(), label=name, **line
        )
    if not axes.lines:
        return None
    axes.set_xscale("log")
    axes.set_ylim(0, 1.01)
    crowded = len(axes.get_legend_handles_labels()[0]) > _MOST_IN_LEGEND
    _name_lines(figure, axes, alone or crowded, loc="lower right")
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
    # As vectors, which PGF needs, in place of a picture.
    rows_at, columns_at = (np.arange(n + 1) - 0.5 for n in values.shape)
    style = {"cmap": "cividis", "edgecolor": "white", "linewidth": 0.8}
    shown = axes.pcolormesh(columns_at, rows_at, values, **style)
    axes.invert_yaxis()
    names = [textwrap.fill(pictures.text(name), 34) for name in methods]
    axes.set_yticks(range(len(methods)), names, fontsize="x-small")
    starts = [textwrap.fill(pictures.text(name), 16) for name in inits]
    axes.set_xticks(range(len(inits)), starts, fontsize="x-small")
    axes.grid(visible=False)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            how = {"color": "w" if value < middle else "k", "fontsize": "small"}
            text = f"{100 * value:.1f}"
            axes.text(column, row, text, ha="center", va="center", **how)
    percent = matplotlib.ticker.PercentFormatter(1, symbol="")
    bar = figure.colorbar(shown, format=percent, label="test accuracy, %")
    bar.solids.set(rasterized=False, edgecolor="face")
    return figure


def metric_curves(
    methods: Sequence[Method],
    field: str,
    label: str,
    *,
    logarithmic: bool = False,
    spread: tuple[str, str] | None = None,
    alone: bool = False,
) -> Figure | None:
    """One metric over rounds, or None where no run measured it.

    Without a legend, but for `alone`: that of `learning_curves` and the tables show
    each method's line.
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
    _name_lines(figure, axes, alone)
    return figure


def client_accuracy_curves(
    methods: Sequence[Method], what: str, label: str, alone: bool = False
) -> Figure | None:
    """Accuracy of clients over rounds, pale before and full after fine-tuning.

    Of many methods only after it.

    Args:
        what: "mean" or "worst_decile".
        alone: as of `learning_curves`.
    """
    figure, axes = pictures.axes("round", label)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, symbol=""))
    style = styles(methods)
    drawn = []
    for method in methods:
        line = axes, method, style[method.name]
        if have_bands(methods):
            before = {
                "label": "_",
                "linewidth": 0.7 * pictures.line_width(),
                "alpha": 0.45,
                "band": False,
            }
            _draw(*line, f"client_accuracy_{what}", **before)
        drawn.append(
            _draw(*line, f"personalised_accuracy_{what}", band=have_bands(methods))
        )
    if not any(drawn):
        return None
    axes.set_ylim(0, 1.01)
    _axis_of_rounds(axes, methods)
    _name_lines(figure, axes, alone)
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
    axes.set_yticks(range(len(found)), names, fontsize="x-small")
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


HUES = (
    *("#0b6bcb", "#e17800", "#771144", "#4ba578"),
    *("#42109a", "#a587c3", "#b42d5a", "#694b00"),
)
"""At a contrast of 3 at least with white."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p")
# On a line.
_MOST_MARKERS = 8
_SOLID = ("solid", (0, (8, 1)), (0, (12, 2, 2, 2)))
_DASHED = ((0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))


def styles(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """A hue and marker an algorithm and what is mixed in; synthetic starts solid.

    Other starts are dashed or dotted. Where that leaves too many of one
    hue (a grid of settings), a hue a method.
    """
    names = [algorithm_name(method.runs[0].config["federated"]) for method in methods]
    algorithms = list(dict.fromkeys(names))
    kinds = [method.init == "synthetic" for method in methods]
    alike = list(zip(names, kinds, strict=True))
    crowded = max(map(alike.count, alike), default=0) > len(_SOLID)
    style = {}
    for index, (method, kind) in enumerate(zip(methods, kinds, strict=True)):
        patterns = _SOLID if kind else _DASHED
        if crowded:
            nth = kinds[:index].count(kind)
            pattern = nth // len(HUES)
        else:
            nth = algorithms.index(names[index])
            pattern = alike[:index].count(alike[index])
        style[method.name] = {
            "color": HUES[nth % len(HUES)],
            "marker": _MARKERS[nth % len(_MARKERS)],
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
    line = {
        "label": pictures.text(method.name),
        "linewidth": pictures.line_width(),
        **options,
    }
    # Where lines coincide, one beneath shows on both sides of the one above, or, of
    # another pattern, in its gaps.
    pattern = str(style["linestyle"])
    beneath = sum(other.get_gid() == pattern for other in axes.lines)
    line["linewidth"] *= max(0.75, 1.9 - 0.5 * beneath)
    drawn = len(axes.lines)
    axes.plot(rounds, mean, gid=pattern, **line, **_marked(style, len(rounds), drawn))
    if band and (high > low).any():
        axes.fill_between(
            rounds, low, high, color=style["color"], alpha=0.13, linewidth=0
        )
    return True


def _marked(style: dict[str, Any], points: int, nth: int) -> dict[str, Any]:
    """A style with some markers on the line, those of the nth at its own places."""
    step = -(-points // _MOST_MARKERS)
    return {
        **style,
        "markevery": (nth % step, step),
        "markersize": 3.6 * pictures.line_width(),
        "markeredgecolor": "white",
        "markeredgewidth": 0.7,
    }


def _name_lines(figure: Figure, axes: Axes, alone: bool, loc: str = "") -> None:
    """A legend below a picture that stands alone; else at a place in it, if any."""
    few = len(axes.get_legend_handles_labels()[0]) <= _MOST_IN_LEGEND
    if alone:
        _legend_below(figure, axes)
    elif loc and few:  # many would cover the curves; the tables show each one's line
        axes.legend(
            loc=loc,
            fontsize="small",
            handlelength=3.2,
            framealpha=0.8,
            edgecolor="none",
        )


def _legend_below(figure: Figure, axes: Axes) -> None:
    """A legend of any length, in two columns or, of long names, one."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    size = matplotlib.font_manager.FontProperties(size="small").get_size_in_points()
    # Letters that a column holds beside the sample of its line.
    letters = int((width * 72 / 2 - 5 * size) / (0.55 * size))
    columns = 1 if max(map(len, labels)) > 2 * letters else 2
    labels = [textwrap.fill(label, letters * (3 - columns)) for label in labels]
    heights = [label.count("\n") + 1 for label in labels]
    half = -(-len(labels) // columns)
    lines = max(sum(heights[:half]), sum(heights[half:]))
    figure.set_size_inches(width, height + lines * 1.35 * size / 72)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        fontsize=size,
        handlelength=3.2,
        frameon=False,
    )


def _axis_of_rounds(axes: Axes, methods: Sequence[Method]) -> None:
    """The same axis under all curves of a report."""
    last = max(run.done for method in methods for run in method.runs)
    axes.set_xlim(0, max(last, 1))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
