"""The report's figures and tables as files for a paper.

In `<workdir>/paper/`: each figure as PDF, PGF and PNG, in a paper's letters and
`config.report.figure_width` wide, and the tables in LaTeX. What the clients hold is
among them only where `config.report.private_examples` is set.
"""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from federated import pgf, pictures
from federated.report import figures, tables
from federated.report.runs import Method
from gptfl_jax import artifacts

_DOTS_PER_INCH = 300


def write(
    methods: Sequence[Method],
    rows: Sequence[dict[str, Any]],
    shown: dict[str, tables.Table | None],
    config: ConfigDict,
    workdir: pathlib.Path,
) -> pathlib.Path:
    """Writes the files and returns their folder.

    Args:
        methods: those that were run.
        rows: their numbers, as in report.json.
        shown: the tables by the name of their file.
        config: of the report.
        workdir: where the records of the runs are found.
    """
    folder = workdir / "paper"
    artifacts.remove_leftovers(folder)  # of a report that was killed
    files: dict[artifacts.PathLike, bytes] = {
        folder / f"{name}.tex": table.latex().encode()
        for name, table in shown.items()
        if table is not None
    }
    with pictures.for_paper(config.report.figure_width):
        drawn = figures.every(methods, rows, config.report.targets, workdir, alone=True)
        if not config.report.private_examples:
            del drawn["partition"]
        for name, figure in drawn.items():
            if figure is None:
                continue
            files[folder / f"{name}.pdf"] = pictures.pdf(figure)
            figure.set_layout_engine("none")  # it stays as it was laid out for that
            files[folder / f"{name}.png"] = pictures.png(figure, _DOTS_PER_INCH)
            with contextlib.suppress(ValueError):  # a map of many clients is a raster
                files[folder / f"{name}.pgf"] = pgf.pgf(figure)
    artifacts.write_files(files)
    return folder
