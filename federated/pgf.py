"""Figures as PGF, to be set by the LaTeX of a paper in its own font.

Matplotlib's PGF backend asks an installed LaTeX how wide each text is. Here the letters
that ship with matplotlib are measured in its place, so that none has to be installed.
"""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pgf import RendererPgf
from matplotlib.figure import Figure

_BEFORE = r"""% \usepackage{pgf} in the preamble, and \input{<this file>} in a figure.
\begingroup
\makeatletter
\providecommand{\mathdefault}[1]{#1}
\begin{pgfpicture}
"""
_AFTER = r"""\end{pgfpicture}
\makeatother
\endgroup
"""
_COMMANDS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "±": r"\ensuremath{\pm}",
    "→": r"\ensuremath{\rightarrow}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def escaped(text: str) -> str:
    """Text as LaTeX sets it to the letter: nothing in it is a command."""
    return "".join(_COMMANDS.get(character, character) for character in text)


class _Renderer(RendererPgf):
    """With the widths of matplotlib's own letters."""

    def __init__(self, figure: Figure, drawn: io.StringIO) -> None:
        super().__init__(figure, drawn)
        self._measures = FigureCanvasAgg(figure).get_renderer()

    def get_text_width_height_descent(
        self, s: str, prop: Any, ismath: Any
    ) -> tuple[float, float, float]:
        return self._measures.get_text_width_height_descent(s, prop, ismath)

    def draw_text(
        self,
        gc: Any,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        s = s if ismath else escaped(s)
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)


def pgf(figure: Figure) -> bytes:
    r"""The figure as a PGF picture of its size, for `\input`.

    Made within `pictures.for_paper`, whose letters are as wide as those of Times.

    Raises:
        ValueError: it holds a raster image, which PGF keeps in a file of its own.
    """
    drawn = io.StringIO()
    width, height = figure.get_size_inches()
    size = rf"\pgfqpoint{{{width:f}in}}{{{height:f}in}}"
    drawn.write(_BEFORE)
    drawn.write(rf"\pgfpathrectangle{{\pgfpointorigin}}{{{size}}}" + "\n")
    drawn.write("\\pgfusepath{use as bounding box, clip}\n")
    figure.draw(_Renderer(figure, drawn))
    drawn.write(_AFTER)
    return drawn.getvalue().encode()
