"""The files for a paper."""

import re

from PIL import Image

from federated import pictures, report
from federated.report import tables

from ..conftest import make_config
from .conftest import make_run


def test_figures_have_their_width_and_their_fonts(workdir):
    config = make_config()
    config.report.figure_width = 3.25
    report.run(config, workdir)
    folder = workdir / "paper"
    drawn = ("accuracy", "gradient_diversity", "loss")
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        [f"{name}.{kind}" for name in drawn for kind in ("pdf", "pgf", "png")]
        + [f"{name}.tex" for name in ("clients", "differences", "methods")]
    )
    pdf = (folder / "accuracy.pdf").read_bytes()
    assert b"STIXGeneral" in pdf and b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", pdf)[1])
    assert abs(width - 72 * 3.25) < 1
    image = Image.open(folder / "accuracy.png")
    assert image.width == 975  # 300 dots an inch
    pgf = (folder / "accuracy.pgf").read_text()
    assert "{\\pgfqpoint{3.250000in}" in pgf and "\\rmfamily" in pgf
    assert "FedAvg from scratch" in pgf and "test accuracy, \\%" in pgf


def test_what_clients_hold_is_drawn_when_asked_for(workdir, quick_pictures):
    config = make_config()
    config.report.private_examples = True
    config.report.runs = ("scratch-s0",)
    report.run(config, workdir)
    assert (workdir / "paper" / "partition.pgf").exists()


def test_names_are_no_commands_of_latex(workdir, quick_pictures):
    make_run(workdir, "odd", [0.1, 0.5], init=r"w/\input{x}_$1&50%")
    report.run(make_config(), workdir)
    table = (workdir / "paper" / "methods.tex").read_text()
    name = r"FedAvg from w/\textbackslash{}input\{x\}\_\$1\&50\%"
    assert f"\n{name} & 50.0 & 40.0 & \\textgreater{{}} 1 & " in table


def test_table_in_latex_by_hand():
    table = tables.Table(["method", "accuracy %"], [["A", "1.0 ± 0.5"], ["B", "-"]])
    assert table.latex().splitlines()[1:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & accuracy \% \\",
        r"\midrule",
        r"A & 1.0 \ensuremath{\pm} 0.5 \\",
        r"B & - \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_marker_as_a_polygon():
    # A square of side 1 about the middle, times 8; SVG's axis goes down.
    corners = pictures.outline("s", 8).split()
    assert set(corners) == {"-4.00,4.00", "4.00,4.00", "4.00,-4.00", "-4.00,-4.00"}


def test_letters_of_a_paper_end_with_it():
    with pictures.for_paper(3.25):
        figure, _ = pictures.axes("", "")
    after, axes = pictures.axes("x", "y")
    assert figure.get_figwidth() == 3.25 and after.get_figwidth() == 6.4
    assert axes.xaxis.label.get_size() == 10
