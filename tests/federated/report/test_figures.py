"""The pictures: what they draw, and that they can be told apart."""

import json

import pytest

from federated import report
from federated.report import figures, runs
from gptfl_jax import artifacts

from ..conftest import make_config
from .conftest import make_run, rows_of


def test_curve_of_norms_has_the_spread_over_clients(workdir):
    make_run(workdir, "prox-s0", [0.1, 0.4], algorithm="fedprox", measured=True)
    methods = runs.methods_of(runs.load_runs(workdir, ["prox-s0"]))
    figure = figures.metric_curves(
        *(methods, "update_norm_mean", ""),
        spread=("update_norm_std", "update_norm_min"),
    )
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 2]]
    (band,) = axes.collections
    # One standard deviation, 0.7, but not below the least norm.
    vertices = band.get_paths()[0].vertices[:, 1]
    assert sorted(set(vertices)) == pytest.approx([1.5, 2.7])


def test_many_methods_have_a_line_each_and_are_named_in_the_picture(tmp_path):
    for number in range(30):
        rate = 0.001 * (number + 1)
        init = ("random", "synthetic")[number % 2]
        make_run(tmp_path, f"m{number}", [0.1, 0.5], init=init, clip_norm=rate)
    methods = runs.methods_of(runs.load_runs(tmp_path))
    styles = [tuple(style.values()) for style in figures.styles(methods).values()]
    assert len(set(styles)) == 30
    alone = figures.learning_curves(methods, None, (), alone=True)
    named = [text.get_text() for text in alone.legends[0].get_texts()]
    assert [" ".join(name.split()) for name in named] == [m.name for m in methods]
    assert "FedAvg from scratch (clip_norm 0.003)" in named
    assert not figures.learning_curves(methods, None, ()).legends
    report.run(make_config(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    # In both tables, with the starting weights, which are no run of their own.
    assert page.count('class="swatch"') == 2 * 31


def test_plots_share_their_axis_and_one_legend(workdir):
    make_run(workdir, "prox-s0", [0.1] * 9, algorithm="fedprox", measured=True)
    methods = runs.methods_of(runs.load_runs(workdir))
    curves = [
        figures.learning_curves(methods, None, ()),
        figures.metric_curves(methods, "gradient_diversity", "", logarithmic=True),
        figures.metric_curves(methods, "drift", ""),
        figures.client_accuracy_curves(methods, "mean", ""),
    ]
    axes = [figure.axes[0] for figure in curves]
    assert {each.get_xlim() for each in axes} == {(0.0, 8.0)}
    assert len({tuple(each.get_xticks()) for each in axes}) == 1
    assert [each.get_legend() is not None for each in axes] == [True] + 3 * [False]
    # Where curves coincide, those below show at the edges of those above.
    by_pattern = {}
    for line in axes[0].lines:
        if len(line.get_xdata()):
            by_pattern.setdefault(line.get_gid(), []).append(line.get_linewidth())
    assert max(map(len, by_pattern.values())) > 1
    for widths in by_pattern.values():
        assert widths == sorted(set(widths), reverse=True)


def test_class_names_and_folders_may_hold_dollars(workdir):
    make_run(workdir, "$5$", [0.1, 0.5], init="w/$frac^$", measured=True)
    file = workdir / "federated" / "$5$" / "partition.json"
    content = json.loads(file.read_text())
    content["class_names"][0] = r"$\sqrt$"
    artifacts.write_json(file, content)
    report.run(make_config(), workdir)
    assert "FedAvg from w/$frac^$" in rows_of(workdir)
