"""The pictures: what they draw, and that they can be told apart."""

import itertools
import json

import numpy as np
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


def test_a_method_has_one_hue_from_every_start(tmp_path):
    """What is mixed in makes another method of the same algorithm."""
    for init in ("random", "synthetic", "procedural"):
        for count in (0, 40):
            fields = {"init": init, "synthetic_per_client": count}
            make_run(tmp_path, f"{init}-{count}", [0.1, 0.5], **fields)
    methods = runs.methods_of(runs.load_runs(tmp_path))
    styles = figures.styles(methods)
    hues = {
        mixed: {styles[m.name]["color"] for m in methods if ("+ 40" in m.name) == mixed}
        for mixed in (False, True)
    }
    assert [len(x) for x in hues.values()] == [1, 1]
    assert hues[False] != hues[True]
    assert len({tuple(style.values()) for style in styles.values()}) == 6


def test_many_methods_have_a_line_each_and_are_named_in_the_picture(
    tmp_path, quick_pictures
):
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


# Of linear RGB, at full severity (Machado, Oliveira and Fernandes 2009).
_SEEN = {
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def _oklab(linear: np.ndarray) -> np.ndarray:
    """Ottosson 2020; equal distances look about equally far."""
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    opponents = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    seen = np.cbrt(np.clip(linear, 0, 1) @ np.transpose(cones))
    return seen @ np.transpose(opponents)


def _linear(hues):
    shades = np.array([[int(hue[i : i + 2], 16) for i in (1, 3, 5)] for hue in hues])
    shades = shades / 255
    return np.where(
        shades <= 0.04045, shades / 12.92, ((shades + 0.055) / 1.055) ** 2.4
    )


def test_hues_are_told_apart_by_those_who_see_two_colours():
    linear = _linear(figures.HUES)
    for sight in _SEEN.values():
        seen = _oklab(linear @ np.transpose(sight))
        apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(apart) > 0.1  # a just noticeable difference is about 0.02
    # Contrast with white, as the W3C's WCAG 2.1 asks for of graphics.
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (1.05 / (luminance + 0.05) >= 2.99).all()


def test_methods_are_told_apart_without_colours(tmp_path):
    for algorithm in ("fedavg", "fedprox", "fedopt"):
        for init in ("random", "synthetic"):
            options = {"algorithm": algorithm, "init": init}
            make_run(tmp_path, f"{algorithm}-{init}", [0.1] * 21, **options)
    methods = runs.methods_of(runs.load_runs(tmp_path))
    (axes,) = figures.learning_curves(methods, None, ()).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
    assert len({(line.get_marker(), line.get_gid()) for line in lines}) == 6
    # 7 of 21 points have a marker, those of each line at another place.
    assert [line.get_markevery() for line in lines] == [
        *((0, 3), (1, 3), (2, 3)),
        *((0, 3), (1, 3), (2, 3)),
    ]


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
