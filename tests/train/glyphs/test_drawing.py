"""Rendering: shapes, looks and the prompts that describe them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.glyphs import drawing, prompts

# Pictures a call; one number for all tests, as compiling takes far longer than drawing.
COUNT = 100


@functools.cache
def _program():
    return jax.jit(jax.vmap(drawing.draw, (0, None, 0)))


def draw_in_colour(atlas, wanted, seed):
    wanted = jax.tree.map(lambda x: jnp.full((COUNT,), x, jnp.int32), wanted)
    return _program()(jax.random.split(jax.random.key(seed), COUNT), atlas, wanted)


def draw(atlas, digit, words=(), seed=0):
    """Grey pictures in [0, 1] of a digit in a look, and what they show."""
    wanted = dict.fromkeys(prompts.Attributes._fields, 0) | {"digit": digit}
    for slot, word in words:
        wanted[slot] = getattr(prompts, f"{slot.upper()}S").index(word)
    pictures, shown = draw_in_colour(atlas, prompts.Attributes(**wanted), seed)
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


def test_a_picture_is_a_function_of_its_key(atlas):
    first, _ = draw(atlas, 3, seed=5)
    again, _ = draw(atlas, 3, seed=5)
    other, _ = draw(atlas, 3, seed=6)
    np.testing.assert_array_equal(first, again)
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
    parts = [draw(atlas, 8, seed=seed)[1] for seed in range(4)]
    for slot, words in (
        ("kind", prompts.KINDS),
        ("weight", prompts.WEIGHTS),
        ("slant", prompts.SLANTS),
        ("background", prompts.BACKGROUNDS),
        ("framing", prompts.FRAMINGS),
    ):
        values = np.concatenate([getattr(shown, slot) for shown in parts])
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
    pictures, _ = draw(atlas, 3, words)
    heights = np.array([box[1] - box[0] for box in map(ink_box, pictures)])
    assert low <= np.percentile(heights, 5) and np.percentile(heights, 95) <= high


def test_weights_order_the_amount_of_ink(atlas):
    ink = [
        draw(atlas, 2, (*SCAN, ("weight", weight)))[0].mean()
        for weight in ("thin", "medium", "thick")
    ]
    assert ink[0] * 1.4 < ink[1] and ink[1] * 1.2 < ink[2]


def test_slants_lean_to_their_side(atlas):
    lean = {}
    for slant in ("tilted", "upright", "slanted"):
        pictures, _ = draw(atlas, 1, (*SCAN, ("slant", slant)))
        columns = np.arange(32)
        top, bottom = pictures[:, 4:10], pictures[:, 22:28]
        centre = [
            (half.sum(1) * columns).sum(-1) / half.sum((1, 2)) for half in (top, bottom)
        ]
        lean[slant] = np.median(centre[0] - centre[1])
    # The forms of the one lean a little to the left at the top: its flag.
    assert lean["tilted"] + 2 < lean["upright"] < lean["slanted"] - 2


def test_markers_and_pens_have_colour_and_the_rest_is_grey(atlas):
    pictures, shown = draw_in_colour(atlas, prompts.Attributes(4, 0, 0, 0, 2, 0), 0)
    spread = np.ptp(np.asarray(pictures, np.int32), axis=-1).max((1, 2))
    kind = np.asarray(shown.kind)
    assert np.median(spread[kind == prompts.KINDS.index("marker")]) > 80
    assert spread[kind == prompts.KINDS.index("handwritten")].max() == 0
