"""Rendering: shapes, looks and the prompts that describe them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.data import glyphs
from gptfl_jax.errors import UserError

OPEN = jnp.int32(0)


@pytest.fixture(scope="module")
def atlas() -> glyphs.Atlas:
    """Pen paths alone: no font is needed."""
    fields, digits = glyphs.pen_shapes(per_digit=6, seed=1)
    no_width = np.zeros(len(digits), np.float32)
    return glyphs.make_atlas(fields, digits, no_width, np.ones(len(digits), bool))


@functools.cache
def _program():
    return jax.jit(jax.vmap(glyphs.draw, (0, None, 0)))


def draw(atlas, digit, words=(), count=40, seed=0):
    """Grey pictures in [0, 1] of a digit in a look, and what they show."""
    wanted = {name: OPEN for name in glyphs.Attributes._fields} | {
        "digit": jnp.int32(digit)
    }
    for slot, word in words:
        wanted[slot] = jnp.int32(getattr(glyphs, f"{slot.upper()}S").index(word))
    wanted = glyphs.Attributes(**wanted)
    wanted = jax.tree.map(lambda x: jnp.full((count,), x), wanted)
    keys = jax.random.split(jax.random.key(seed), count)
    pictures, shown = _program()(keys, atlas, wanted)
    return np.asarray(pictures, np.float32).mean(-1) / 255, shown


SCAN = (
    ("kind", "handwritten"),
    ("background", "dark"),
    ("framing", "filling the frame"),
)


def ink_box(picture):
    """Rows and columns with ink on a dark picture."""
    rows, columns = np.nonzero(picture > 0.5)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def test_pen_distance_of_a_straight_line():
    # A vertical stroke one digit high: the distance is |x| beside it, and grows
    # below its end.
    path = np.array([[0.0, -0.5], [0.0, 0.5]])
    field = glyphs._distance_to_paths([path])
    grid = glyphs._grid()
    beside = np.abs(grid[..., 1]) < 0.5
    np.testing.assert_allclose(field[beside], np.abs(grid[..., 0])[beside], atol=1e-9)
    below = grid[-1, 0]
    expected = np.hypot(below[0], below[1] - 0.5)
    np.testing.assert_allclose(field[-1, 0], expected)


def test_curves_pass_through_way_points_and_keep_corners():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    curve = glyphs._smooth_path(points)
    distance = np.linalg.norm(curve[:, None] - points[None], axis=-1).min(0)
    np.testing.assert_allclose(distance, 0, atol=1e-12)
    # The corner at (1, 0) is sharp: both legs stay straight.
    assert np.all((np.abs(curve[:, 1]) < 1e-12) | (np.abs(curve[:, 0] - 1) < 1e-12))


def test_every_form_of_every_digit_is_one_digit_high(atlas):
    assert np.bincount(atlas.digit).tolist() == [6] * 10
    grid = glyphs._grid()
    pixel = grid[0, 1, 0] - grid[0, 0, 0]
    for field in atlas.distance:
        touched = grid[field < pixel][:, 1]
        assert touched.min() == pytest.approx(-0.5, abs=2 * pixel)
        assert touched.max() == pytest.approx(0.5, abs=2 * pixel)


def test_a_picture_is_a_function_of_its_key(atlas):
    first, _ = draw(atlas, 3, seed=5)
    again, _ = draw(atlas, 3, seed=5)
    fewer, _ = draw(atlas, 3, seed=5, count=40)
    other, _ = draw(atlas, 3, seed=6)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, fewer)
    assert np.abs(first - other).mean() > 0.05


def test_what_is_asked_for_is_shown(atlas):
    for digit in range(10):
        _, shown = draw(atlas, digit, SCAN)
        assert set(np.asarray(shown.digit).tolist()) == {digit}
        assert set(np.asarray(shown.kind).tolist()) == {1}
        assert set(np.asarray(shown.background).tolist()) == {1}
        assert set(np.asarray(shown.framing).tolist()) == {1}
        assert min(np.asarray(shown.weight).min(), np.asarray(shown.slant).min()) >= 1


def test_open_slots_take_every_value(atlas):
    _, shown = draw(atlas, 8, count=400)
    for slot, words in (
        ("kind", glyphs.KINDS),
        ("weight", glyphs.WEIGHTS),
        ("slant", glyphs.SLANTS),
        ("background", glyphs.BACKGROUNDS),
        ("framing", glyphs.FRAMINGS),
    ):
        values = np.asarray(getattr(shown, slot))
        assert set(values.tolist()) == set(range(1, len(words))), slot


def test_backgrounds(atlas):
    dark, _ = draw(atlas, 5, (("kind", "handwritten"), ("background", "dark")))
    light, _ = draw(atlas, 5, (("kind", "handwritten"), ("background", "light")))
    corners = (slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    assert np.median(dark[corners]) < 0.2 and np.median(light[corners]) > 0.8
    assert dark.max((1, 2)).min() > 0.6 and light.min((1, 2)).max() < 0.4


@pytest.mark.parametrize(
    ("framing", "low", "high"),
    [("filling the frame", 28, 32), ("small", 11, 21), ("centered", 19, 29)],
)
def test_framing_sets_the_height(atlas, framing, low, high):
    words = (*SCAN[:2], ("framing", framing))
    pictures, _ = draw(atlas, 3, words, count=60)
    heights = np.array([box[1] - box[0] for box in map(ink_box, pictures)])
    assert low <= np.percentile(heights, 5) and np.percentile(heights, 95) <= high


def test_weights_order_the_amount_of_ink(atlas):
    ink = [
        draw(atlas, 2, (*SCAN, ("weight", weight)), count=60)[0].mean()
        for weight in ("thin", "medium", "thick")
    ]
    assert ink[0] * 1.4 < ink[1] and ink[1] * 1.2 < ink[2]


def test_slants_lean_to_their_side(atlas):
    lean = {}
    for slant in ("tilted", "upright", "slanted"):
        pictures, _ = draw(atlas, 1, (*SCAN, ("slant", slant)), count=100)
        columns = np.arange(32)
        top, bottom = pictures[:, 4:10], pictures[:, 22:28]
        centre = [
            (half.sum(1) * columns).sum(-1) / half.sum((1, 2)) for half in (top, bottom)
        ]
        lean[slant] = np.median(centre[0] - centre[1])
    # The forms of the one lean a little to the left at the top: its flag.
    assert lean["tilted"] + 2 < lean["upright"] < lean["slanted"] - 2


def test_markers_and_pens_have_colour_and_the_rest_is_grey(atlas):
    wanted = glyphs.Attributes(
        *(jnp.full((60,), v, jnp.int32) for v in (4, 0, 0, 0, 2, 0))
    )
    keys = jax.random.split(jax.random.key(0), 60)
    pictures, shown = _program()(keys, atlas, wanted)
    spread = np.ptp(np.asarray(pictures, np.int32), axis=-1).max((1, 2))
    kind = np.asarray(shown.kind)
    assert np.median(spread[kind == glyphs.KINDS.index("marker")]) > 80
    assert spread[kind == glyphs.KINDS.index("handwritten")].max() == 0


def test_prompts_read_as_sentences():
    assert glyphs.prompt(7, weight="thin", slant="slanted") == (
        "a handwritten digit seven, thin slanted strokes"
    )
    assert glyphs.prompt(0, "chalk", background="dark", framing="small") == (
        "a chalk digit zero on a dark background, small"
    )
    assert glyphs.prompt(4, "") == "a digit four"
    assert glyphs.prompt(1, "pen", "thick", "upright", "light", "centered") == (
        "a pen digit one, thick upright strokes on a light background, centered"
    )


def test_prompt_index_finds_the_sentence_of_the_attributes():
    prompts = glyphs.all_prompts()
    assert len(prompts) == len(set(prompts)) == 10 * 7 * 4 * 4 * 3 * 4
    attributes = glyphs.Attributes(*map(jnp.int32, (9, 3, 2, 1, 2, 3)))
    assert prompts[int(glyphs.prompt_index(attributes))] == glyphs.prompt(
        9, "pencil", "medium", "upright", "light", "centered"
    )


def test_mentions_leave_slots_open_but_never_change_them():
    shown = glyphs.Attributes(*map(jnp.int32, (6, 1, 2, 3, 1, 2)))
    keys = jax.random.split(jax.random.key(0), 300)
    said = jax.vmap(glyphs.mention, (0, None))(keys, shown)
    assert set(np.asarray(said.digit).tolist()) == {6}
    for value, full in zip(said[1:], shown[1:], strict=True):
        assert set(np.asarray(value).tolist()) == {0, int(full)}


def test_fonts_give_ten_different_digits_each():
    pytest.importorskip("fontpkg")
    fields, digits, names = glyphs.font_shapes(("roboto",), weights=(400, 700))
    # Upright and italic, each in two weights.
    assert digits.tolist() == list(range(10)) * 4 and names == ["roboto"] * 40
    # The bold strokes are wider, and their half-width is the deepest distance.
    depth = -fields.min((1, 2)).reshape(2, 2, 10)
    regular, bold = depth[:, 0], depth[:, 1]
    assert (bold > 1.2 * regular).all() and (regular > 0.03).all()
    # A one is narrow: no ink at a third of a digit height beside its middle.
    grid = glyphs._grid()
    beside = np.abs(grid[..., 0]) > 0.34
    assert fields[1][beside].min() > 0
    assert fields[0][beside].min() < 0 or fields[8][beside].min() < 0.05


def test_a_font_that_is_not_installed_is_named():
    pytest.importorskip("fontpkg")
    with pytest.raises(UserError, match="no-such-font.*gptfl-jax\\[fonts\\]"):
        glyphs.font_shapes(("no-such-font",))
