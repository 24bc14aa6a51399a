"""The page of a sweep: its table, and the grid as heat maps or the draws as points."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from federated import pages, pictures
from federated.sweep import results

_TEMPLATE = pages.template(pathlib.Path(__file__).parent)
_COLOURS = "cividis"  # told apart by those who see no red or no green, and in grey
_MOST_MAPS = 24
_MOST_CELLS = 24


class HeatMap(NamedTuple):
    """Accuracies over two fields, where the others have the values of its title."""

    title: str
    across: str
    """The field of the columns; empty: there is one column."""
    down: str
    columns: list[str]
    lines: list[str]
    accuracy: np.ndarray
    """[lines, columns]; NaN where there is no such point, or it has not all runs."""


def heat_maps(rows: Sequence[dict[str, Any]], fields: Sequence[str]) -> list[HeatMap]:
    """A sweep's accuracies as heat maps: one for all values of the further fields.

    The two fields with the most values lie across and down.

    Args:
        rows: of `results.rows`.
        fields: those that were varied.
    """
    values = {field: _values(rows, field) for field in fields}
    by_size = sorted(fields, key=lambda field: -len(values[field]))
    across, down = (*by_size, "", "")[:2]
    others = [field for field in fields if field not in (across, down)]
    maps = []
    for rest in itertools.product(*(values[field] for field in others)):
        there = [
            row
            for row in rows
            if all(
                row["values"].get(f, "-") == v
                for f, v in zip(others, rest, strict=True)
            )
        ]
        if not there:
            continue
        columns = [v for v in values[across] if _any(there, across, v)]
        lines = [v for v in values[down] if _any(there, down, v)] if down else [""]
        accuracy = np.full((len(lines), len(columns)), np.nan)
        for row in there:
            if row["by_seed"] is not None:
                line = lines.index(row["values"].get(down, "-")) if down else 0
                column = columns.index(row["values"].get(across, "-"))
                accuracy[line, column] = row["accuracy_mean"]
        title = ", ".join(
            f"{_short(field)} {value}"
            for field, value in zip(others, rest, strict=True)
            if value != "-"
        )
        maps.append(HeatMap(title, across, down, columns, lines, accuracy))
    return maps


def _any(rows: Sequence[dict[str, Any]], field: str, value: str) -> bool:
    return any(row["values"].get(field, "-") == value for row in rows)


def _values(rows: Sequence[dict[str, Any]], field: str) -> list[str]:
    """The values of a field, numbers in order; "-" where a point has none."""
    found = dict.fromkeys(row["values"].get(field, "-") for row in rows)

    def order(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), ""
        except ValueError:
            return True, 0.0, value

    return sorted(found, key=order)


def _short(field: str) -> str:
    return field.rpartition(".")[2]


def _drawn(drawn: HeatMap, low: float, high: float) -> Figure:
    wide = 1.6 + 0.75 * len(drawn.columns)
    figure, axes = pictures.axes(
        _short(drawn.across),
        _short(drawn.down),
        (max(3.2, wide), 1.1 + 0.5 * len(drawn.lines)),
    )
    image = axes.imshow(
        100 * drawn.accuracy, cmap=_COLOURS, vmin=low, vmax=high, aspect="auto"
    )
    axes.grid(visible=False)
    axes.set_facecolor("#eef1f3")
    axes.set_xticks(range(len(drawn.columns)), map(pictures.text, drawn.columns))
    axes.set_yticks(range(len(drawn.lines)), map(pictures.text, drawn.lines))
    if drawn.title:
        axes.set_title(pictures.text(drawn.title), fontsize=10)
    small = max(drawn.accuracy.shape) <= _MOST_CELLS
    for (line, column), value in np.ndenumerate(drawn.accuracy):
        if np.isnan(value):
            axes.text(column, line, "–", ha="center", va="center", color=pictures.GREY)
        elif small:
            red, green, blue, _ = image.cmap(image.norm(100 * value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(
                *(column, line, f"{100 * value:.1f}"),
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
            )
    figure.colorbar(image, ax=axes, label="accuracy %")
    return figure


def _scatter(rows: Sequence[dict[str, Any]], field: str) -> Figure:
    """Accuracy over the values of one field."""
    values = _values(rows, field)
    figure, axes = pictures.axes(_short(field), "accuracy %", (4.6, 3.4))
    complete = [row for row in rows if row["by_seed"] is not None]
    numeric = all(_is_number(value) for value in values)
    places = [
        float(v) if numeric else values.index(v)
        for v in (row["values"].get(field, "-") for row in complete)
    ]
    axes.errorbar(
        *(places, [100 * row["accuracy_mean"] for row in complete]),
        yerr=[100 * row["accuracy_std"] for row in complete],
        fmt="o",
        markersize=5,
        elinewidth=1,
        color="#0b6bcb",
    )
    if numeric:
        _spread(axes, places)
    else:
        axes.set_xticks(range(len(values)), map(pictures.text, values))
    return figure


def _spread(axes: Axes, places: Sequence[float]) -> None:
    if places and min(places) > 0 and max(places) > 5 * min(places):
        axes.set_xscale("log")


def _is_number(value: str) -> bool:
    try:
        return np.isfinite(float(value))
    except ValueError:
        return False


def render(
    config: ConfigDict,
    rows: Sequence[dict[str, Any]],
    fields: Sequence[str],
    measured_on: str,
) -> str:
    """The whole of sweep.html.

    Args:
        config: of the sweep.
        rows: of `results.rows`.
        fields: those that were varied.
        measured_on: what accuracies are of.
    """
    drawn: list[tuple[str, str]] = []
    if config.compare.trials:
        for field in fields:
            alt = f"Accuracy over {_short(field)}, a point a draw"
            drawn.append((alt, _uri(_scatter(rows, field))))
    else:
        maps = heat_maps(rows, fields)[:_MOST_MAPS]
        numbers = [100 * each.accuracy[~np.isnan(each.accuracy)] for each in maps]
        numbers = np.concatenate(numbers) if numbers else np.zeros(0)
        low, high = (numbers.min(), numbers.max()) if len(numbers) else (0.0, 100.0)
        for each in maps:
            alt = f"Accuracy over {_short(each.across)} and {_short(each.down)}"
            alt += f", {each.title}" if each.title else ""
            drawn.append((alt, _uri(_drawn(each, low, max(high, low + 1e-3)))))
    return _TEMPLATE.render(
        source=config.data.source,
        seeds=len(config.compare.seeds),
        turns=len(config.compare.data),
        measured_on=measured_on,
        table=results.table(rows, fields),
        pictures=drawn,
        drawn_at_random=bool(config.compare.trials),
        unfinished=sum(row["by_seed"] is None for row in rows),
    )


def _uri(figure: Figure) -> str:
    return pages.data_uri("image/svg+xml", pictures.svg(figure))
