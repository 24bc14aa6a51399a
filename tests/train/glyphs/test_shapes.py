"""Distance fields of pen strokes and fonts."""

import numpy as np
import pytest

from gptfl_jax.errors import UserError
from train.glyphs import shapes


def test_pen_distance_of_a_straight_line():
    # A vertical stroke one digit high: the distance is |x| beside it, and grows
    # below its end.
    path = np.array([[0.0, -0.5], [0.0, 0.5]])
    field = shapes._distance_to_paths([path])
    grid = shapes._grid()
    beside = np.abs(grid[..., 1]) < 0.5
    np.testing.assert_allclose(field[beside], np.abs(grid[..., 0])[beside], atol=1e-9)
    below = grid[-1, 0]
    expected = np.hypot(below[0], below[1] - 0.5)
    np.testing.assert_allclose(field[-1, 0], expected)


def test_curves_pass_through_way_points_and_keep_corners():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    curve = shapes._smooth_path(points)
    distance = np.linalg.norm(curve[:, None] - points[None], axis=-1).min(0)
    np.testing.assert_allclose(distance, 0, atol=1e-12)
    # The corner at (1, 0) is sharp: both legs stay straight.
    assert np.all((np.abs(curve[:, 1]) < 1e-12) | (np.abs(curve[:, 0] - 1) < 1e-12))


def test_every_form_of_every_digit_is_one_digit_high(atlas):
    assert np.bincount(atlas.digit).tolist() == [6] * 10
    grid = shapes._grid()
    pixel = grid[0, 1, 0] - grid[0, 0, 0]
    for field in atlas.distance:
        touched = grid[field < pixel][:, 1]
        assert touched.min() == pytest.approx(-0.5, abs=2 * pixel)
        assert touched.max() == pytest.approx(0.5, abs=2 * pixel)


def test_fonts_give_ten_different_digits_each():
    pytest.importorskip("fontpkg")
    fields, digits, names = shapes.font_shapes(("roboto",), weights=(400, 700))
    # Upright and italic, each in two weights.
    assert digits.tolist() == list(range(10)) * 4 and names == ["roboto"] * 40
    # The bold strokes are wider, and their half-width is the deepest distance.
    depth = -fields.min((1, 2)).reshape(2, 2, 10)
    regular, bold = depth[:, 0], depth[:, 1]
    assert (bold > 1.2 * regular).all() and (regular > 0.03).all()
    # A one is narrow: no ink at a third of a digit height beside its middle.
    grid = shapes._grid()
    beside = np.abs(grid[..., 0]) > 0.34
    assert fields[1][beside].min() > 0
    assert fields[0][beside].min() < 0 or fields[8][beside].min() < 0.05


def test_a_font_that_is_not_installed_is_named():
    pytest.importorskip("fontpkg")
    with pytest.raises(UserError, match="no-such-font.*gptfl-jax\\[fonts\\]"):
        shapes.font_shapes(("no-such-font",))
