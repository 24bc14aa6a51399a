"""Drawing that the programs of stage 3 share: axes, files, the picture of a partition.

A figure is matplotlib's, made without pyplot: nothing global, no window.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence

import matplotlib
import matplotlib.collections
import matplotlib.figure
import matplotlib.markers
import matplotlib.ticker
import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY = "#5f6b76"
_GRID = {"color": "#e4e8eb", "linewidth": 0.8}
# Beyond these a bar is too thin and two classes share a colour.
_MOST_BARS, _MOST_COLOURS = 60, 20
# Columns of a picture of many clients: about what its width resolves.
_MOST_COLUMNS = 1000


# Inches of a figure on a page; what a figure is asked to be large is relative to it.
_WIDTH, _HEIGHT = 6.4, 4.3
# For a paper: the letters of its text, smaller, and whole in the file.
_PAPER = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "font.size": 9,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,
}


@contextlib.contextmanager
def for_paper(width: float) -> Iterator[None]:
    """Figures made and saved within are of that width in inches, in a paper's style."""
    height = width * _HEIGHT / _WIDTH
    with matplotlib.rc_context({**_PAPER, "figure.figsize": (width, height)}):
        yield


def line_width() -> float:
    """Points of a curve's line."""
    return 1.2 * matplotlib.rcParams["lines.linewidth"]


def text(name: object) -> str:
    """A name as matplotlib shows it: a dollar sign is one, and begins no formula."""
    return str(name).replace("$", r"\$")


def axes(
    xlabel: str, ylabel: str, size: tuple[float, float] = (_WIDTH, _HEIGHT)
) -> tuple[Figure, Axes]:
    """A figure of `size` inches with one pair of axes, in the style of the report."""
    figure = _figure(size)
    return figure, styled(figure.add_subplot(), xlabel, ylabel)


def _figure(size: tuple[float, float]) -> Figure:
    scale = matplotlib.rcParams["figure.figsize"][0] / _WIDTH
    inches = scale * size[0], scale * size[1]
    return matplotlib.figure.Figure(figsize=inches, layout="constrained")


def styled(axes: Axes, xlabel: str, ylabel: str) -> Axes:
    """The axes, labelled and with a grid behind."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(**_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def logarithmic(axes: Axes) -> None:
    """A logarithmic axis of values, labelled 0.5 and not 5 x 10^-1.

    Call it when all is drawn: the steps follow from the range.
    """
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = (1,) if high > 500 * low else (1, 2, 5)
    if high < 8 * low:
        steps = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file without a ground; the same numbers, the same bytes."""
    buffer = io.BytesIO()
    # Fixed ids and no date.
    with matplotlib.rc_context({"svg.hashsalt": "gptfl", "font.size": 10}):
        figure.savefig(
            buffer, format="svg", metadata={"Date": None}, dpi=150, transparent=True
        )
    return buffer.getvalue()


def png(figure: Figure, dots_per_inch: int = 150) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return buffer.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF file, without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()


def outline(marker: str, size: float) -> str:
    """The outline of a marker about (0, 0), as the points of an SVG polygon."""
    style = matplotlib.markers.MarkerStyle(marker)
    path = style.get_path().transformed(style.get_transform())
    (corners,) = path.to_polygons()
    return " ".join(f"{size * x:.2f},{-size * y:.2f}" for x, y in corners)


def partition(
    counts: Int[np.ndarray, "clients classes"], class_names: Sequence[str]
) -> Figure:
    """Which labels each client holds, and how many.

    Up to 60 clients and 20 classes: a bar a client, a colour a class. Beyond: a map of
    the labels' shares, a column a client, sorted by most frequent label and its share,
    above the clients' sizes in falling order. Of more than 1,000 clients it shows
    1,000, evenly spaced in either order.
    """
    if len(counts) <= _MOST_BARS and len(class_names) <= _MOST_COLOURS:
        return _bars(counts, class_names)
    return _map(counts, class_names)


def _bars(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    figure, bars = axes("client", "training examples")
    tops = np.cumsum(counts, axis=1)
    # Left and right of a bar, then its corners, one after another.
    sides = np.arange(len(counts))[:, None] + np.array([-0.45, 0.45])
    x = sides[:, [0, 0, 1, 1]]
    # In the order of the legend, and told apart in grey.
    shades = np.linspace(0, 0.95, len(class_names))
    colours = matplotlib.colormaps["viridis"](shades)
    for index, name in enumerate(class_names):
        top = tops[:, index]
        bottom = top - counts[:, index]
        y = np.stack([bottom, top, top, bottom], axis=-1)
        # One of all clients: Axes.bar takes a tenth of a second for each hundred.
        of_class = matplotlib.collections.PolyCollection(
            np.stack([x, y], axis=-1),
            facecolors=[colours[index]],
            edgecolors="white",
            linewidths=0.3,
            label=text(name),
        )
        bars.add_collection(of_class)
    bars.autoscale_view()
    bars.set_ylim(bottom=0)
    bars.grid(axis="x", visible=False)
    bars.set_xlim(-0.7, len(counts) - 0.3)
    for axis in (bars.xaxis, bars.yaxis):
        axis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    longest = max(len(str(name)) for name in class_names)
    figure.legend(
        title="class",
        title_fontsize="x-small",
        frameon=False,
        fontsize="x-small",
        ncols=min(len(class_names), 10, max(1, 80 // (longest + 5))),
        loc="outside upper center",
        handlelength=1,
        columnspacing=1.0,
    )
    return figure


def _map(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    sizes = counts.sum(1)
    share = counts / np.maximum(sizes, 1)[:, None]
    order = np.lexsort((-share.max(1), share.argmax(1), sizes == 0))
    shown = _spaced(order)
    figure = _figure((_WIDTH, 5.4))
    above, below = figure.subplots(2, height_ratios=(3, 1.4))

    some = ""
    if len(shown) < len(counts):
        some = f", {len(shown):,} of {len(counts):,}"
    styled(above, f"clients by most frequent label{some}", "class")
    image = above.imshow(
        share[shown].T,
        aspect="auto",
        interpolation="nearest",
        cmap="Blues",
        vmin=0,
    )
    above.grid(visible=False)
    above.set_xticks([])
    # No more names than there is room for.
    step = -(-len(class_names) // 25)
    ticks = np.arange(0, len(class_names), step)
    above.set_yticks(ticks, [text(class_names[i]) for i in ticks], fontsize="x-small")
    bar = figure.colorbar(image, ax=above, pad=0.01, aspect=30)
    bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    bar.set_label("share of a client's examples")
    bar.outline.set_visible(False)

    styled(below, "clients by size", "training examples")
    falling = -np.sort(-sizes)
    rank = _spaced(np.arange(len(sizes)))
    below.plot(
        rank + 1, falling[rank], color="#0b6bcb", linewidth=1.8, drawstyle="steps-mid"
    )
    if falling[-1] > 0:
        below.set_ylim(falling[-1] / 2, 2 * falling[0])
        logarithmic(below)
    else:  # a logarithm has no place for clients without examples
        below.set_yscale("symlog", linthresh=1)
        below.set_ylim(0, 2 * max(falling[0], 1))
        below.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,g}"))
    below.set_xlim(0.5, len(sizes) + 0.5)
    below.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
    below.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    return figure


def _spaced(order: np.ndarray) -> np.ndarray:
    if len(order) <= _MOST_COLUMNS:
        return order
    picks = np.linspace(0, len(order) - 1, _MOST_COLUMNS).round().astype(int)
    return order[picks]
