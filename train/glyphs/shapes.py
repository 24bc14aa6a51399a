"""Shapes of digits: signed distance fields of font outlines and of pen strokes.

No digit of any data set is read: shapes come from the installed `fontpkg-*` font
families (Google Fonts, extra `fonts`) and from the pen paths of `pen_paths.json`.
"""

import functools
import importlib.resources
import json
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from gptfl_jax.errors import UserError

FIELD_SIDE = 64  # pixels of a stored distance field
FIELD_EXTENT = 0.8  # it covers [-0.8, 0.8] digit heights in x and y
_MAX_DISTANCE = 0.5  # digit heights

# Families whose digits look written rather than printed.
HANDWRITING_FAMILIES = frozenset(
    {
        "caveat",
        "dancing-script",
        "delius",
        "great-vibes",
        "indie-flower",
        "kalam",
        "permanent-marker",
        "satisfy",
        "shadows-into-light",
        "yellowtail",
        "zeyada",
    }
)


class Atlas(NamedTuple):
    """Signed distance fields of digit shapes.

    Attributes:
        distance: Distance to the outline in digit heights, negative inside, on a
            grid over [-0.8, 0.8] digit heights; the ink box is centred and 1 high.
        digit: The digit shown, 0 to 9.
        radius: Half of the widest stroke's width, in digit heights; 0 for pen paths.
        handwritten: Whether the shape was written rather than printed.
        lookup: `lookup[handwritten, digit]` lists shapes of that kind, cyclically
            repeated to one length, so that drawing an index is uniform.
    """

    distance: Float[np.ndarray, "shapes side side"]
    digit: Int[np.ndarray, " shapes"]
    radius: Float[np.ndarray, " shapes"]
    handwritten: Bool[np.ndarray, " shapes"]
    lookup: Int[np.ndarray, "2 10 choices"]


@functools.cache
def _pen_paths() -> list[list[list[list[list[float | int]]]]]:
    """Strokes of each form of each digit.

    `pen_paths.json` holds them as way points (x right, y down) in a box about 0.65 wide
    and 1 high. A way point given twice makes a corner; elsewhere the pen moves along a
    smooth curve.
    """
    path = importlib.resources.files("train.glyphs") / "pen_paths.json"
    paths = json.loads(path.read_text(encoding="utf-8"))
    return [paths[str(digit)] for digit in range(10)]


def _smooth_path(
    points: Float[np.ndarray, "points 2"], steps: int = 8
) -> Float[np.ndarray, "segments 2"]:
    """A Catmull-Rom curve through the points; a repeated point is a corner."""
    curve = []
    for i in range(len(points) - 1):
        start, end = points[i], points[i + 1]
        if np.allclose(start, end):
            continue
        before = points[i - 1] if i > 0 else 2 * start - end
        after = points[i + 2] if i + 2 < len(points) else 2 * end - start
        t = np.linspace(0, 1, steps, endpoint=False)[:, None]
        curve.append(
            0.5
            * (
                2 * start
                + (end - before) * t
                + (2 * before - 5 * start + 4 * end - after) * t**2
                + (3 * (start - end) + after - before) * t**3
            )
        )
    curve.append(points[-1:])
    return np.concatenate(curve)


def _grid() -> Float[np.ndarray, "side side 2"]:
    axis = (np.arange(FIELD_SIDE) + 0.5) / FIELD_SIDE * 2 - 1
    return np.stack(np.meshgrid(axis, axis), -1) * FIELD_EXTENT


def _distance_to_paths(
    paths: list[Float[np.ndarray, "_ 2"]],
) -> Float[np.ndarray, "side side"]:
    """Distance of every grid point to the nearest pen path, in digit heights."""
    starts = np.concatenate([path[:-1] for path in paths])
    ends = np.concatenate([path[1:] for path in paths])
    points = _grid().reshape(-1, 1, 2)
    along = ends - starts
    length = np.maximum((along**2).sum(-1), 1e-12)
    t = np.clip(((points - starts) * along).sum(-1) / length, 0, 1)
    nearest = np.linalg.norm(points - starts - t[..., None] * along, axis=-1).min(1)
    return nearest.reshape(FIELD_SIDE, FIELD_SIDE)


def pen_shapes(
    per_digit: int, seed: int = 0
) -> tuple[Float[np.ndarray, "shapes side side"], Int[np.ndarray, " shapes"]]:
    """Distance fields of written digits: pen paths with wandering way points.

    Args:
        per_digit: Shapes for each digit; its forms take turns.
        seed: Of the way points' displacements.

    Returns:
        The fields, and the digit of each.
    """
    rng = np.random.default_rng(seed)
    fields, digits = [], []
    for digit, forms in enumerate(_pen_paths()):
        for i in range(per_digit):
            strokes = forms[i % len(forms)]
            paths = []
            for stroke in strokes:
                points = np.array(stroke)
                moved = points + rng.normal(0, 0.035, points.shape)
                corner = (points[1:] == points[:-1]).all(-1)
                moved[1:][corner] = moved[:-1][corner]
                paths.append(_smooth_path(moved))
            everything = np.concatenate(paths)
            low, high = everything.min(0), everything.max(0)
            height = high[1] - low[1]
            paths = [(path - (low + high) / 2) / height for path in paths]
            fields.append(np.minimum(_distance_to_paths(paths), _MAX_DISTANCE))
            digits.append(digit)
    return np.stack(fields).astype(np.float32), np.array(digits, np.int32)


def _ink_field(
    font: ImageFont.FreeTypeFont, character: str
) -> Float[np.ndarray, "side side"] | None:
    """Signed distance field of one character, None where it has no ink."""
    left, top, right, bottom = font.getbbox(character)
    margin = 8
    canvas = Image.new(
        "L", (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    )
    ImageDraw.Draw(canvas).text(
        (margin - left, margin - top), character, font=font, fill=255
    )
    box = canvas.point(lambda value: 255 * (value >= 128)).getbbox()
    if box is None:
        return None
    ink = np.asarray(canvas.crop(box)) >= 128
    height, width = ink.shape
    if width > 1.5 * height:
        return None  # not a digit's proportions: a pictorial or script font
    # One field pixel is `step` ink pixels; pad to the field's whole extent.
    side = round(2 * FIELD_EXTENT * height)
    padded = np.zeros((side, side), bool)
    y, x = (side - height) // 2, (side - width) // 2
    padded[max(y, 0) : y + height, max(x, 0) : x + width] = ink[:side, :side]
    signed = ndimage.distance_transform_edt(~padded) - ndimage.distance_transform_edt(
        padded
    )
    # Distances are between pixel centres; the outline runs half a pixel before.
    signed = (signed - np.sign(signed) * 0.5) / height
    centres = (np.arange(FIELD_SIDE) + 0.5) / FIELD_SIDE * side - 0.5
    rows, columns = np.meshgrid(centres, centres, indexing="ij")
    field = ndimage.map_coordinates(signed, [rows, columns], order=1, mode="nearest")
    return np.clip(field, -_MAX_DISTANCE, _MAX_DISTANCE).astype(np.float32)


def covers_digits(path: str) -> bool:
    """Whether the font file maps all ten digits to different, non-empty outlines."""
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True) as font:
        names = [(font.getBestCmap() or {}).get(ord(d)) for d in "0123456789"]
    return None not in names and len(set(names)) == 10


def _installed(families: tuple[str, ...]) -> dict[str, Any]:
    """What is installed, with these families among it."""
    try:
        import fontpkg
    except ImportError as error:
        raise UserError(
            "rendering glyphs needs the font packages: pip install 'gptfl-jax[fonts]'"
        ) from error
    installed = fontpkg.families()
    missing = sorted(set(families) - set(installed))
    if missing:
        raise UserError(
            f"config.text_to_image.families: {', '.join(missing)} not installed: "
            "pip install 'gptfl-jax[fonts]', or leave the field empty for all that are"
        )
    return installed


def font_shapes(
    families: tuple[str, ...] = (), weights: tuple[int, ...] = (200, 400, 700)
) -> tuple[
    Float[np.ndarray, "shapes side side"], Int[np.ndarray, " shapes"], list[str]
]:
    """Distance fields of the digits of installed font families.

    Args:
        families: Names as in `fontpkg.families()`; empty takes all that are installed.
        weights: CSS font weights to draw, each at the nearest a family has.

    Returns:
        The fields, the digit of each, and the family of each.

    Raises:
        UserError: Fonts are missing.
    """
    installed = _installed(families)
    import fontpkg
    from fontpkg.pil import truetype

    fields, digits, names = [], [], []
    for name in sorted(families or installed):
        drawn = set()
        for style in installed[name].styles:
            for weight in weights:
                path = fontpkg.path(name, weight=weight, style=style, nearest=True)
                variable = installed[name].is_variable
                low, high = installed[name].weight_range
                face = (path, min(max(weight, low), high) if variable else None)
                if face in drawn or not covers_digits(str(path)):
                    continue
                drawn.add(face)
                font = truetype(
                    name, size=160, weight=weight, style=style, nearest=True
                )
                shapes = [_ink_field(font, character) for character in "0123456789"]
                if any(shape is None for shape in shapes):
                    continue
                fields += shapes
                digits += range(10)
                names += [name] * 10
    if not fields:
        raise UserError("no usable font is installed: pip install 'gptfl-jax[fonts]'")
    return np.stack(fields), np.array(digits, np.int32), names


def build_atlas(
    families: tuple[str, ...] = (), pen_shapes_per_digit: int = 150, seed: int = 0
) -> Atlas:
    """All shapes that pictures are drawn from: fonts, and pen paths when asked for.

    Args:
        families: As for `font_shapes`.
        pen_shapes_per_digit: As for `pen_shapes`; 0 for fonts alone.
        seed: Of the pen paths.

    Raises:
        UserError: Fonts are missing.
    """
    fields, digits, names = font_shapes(families)
    radius = -fields.min((1, 2))
    handwritten = np.array([name in HANDWRITING_FAMILIES for name in names])
    if pen_shapes_per_digit:
        pen_fields, pen_digits = pen_shapes(pen_shapes_per_digit, seed)
        fields = np.concatenate([fields, pen_fields])
        digits = np.concatenate([digits, pen_digits])
        radius = np.concatenate([radius, np.zeros(len(pen_digits), np.float32)])
        handwritten = np.concatenate([handwritten, np.ones(len(pen_digits), bool)])
    return make_atlas(fields, digits, radius, handwritten)


def make_atlas(
    distance: Float[np.ndarray, "shapes side side"],
    digit: Int[np.ndarray, " shapes"],
    radius: Float[np.ndarray, " shapes"],
    handwritten: Bool[np.ndarray, " shapes"],
) -> Atlas:
    """An atlas of these shapes.

    Where there is none of a kind, written or printed, the other kind stands in.
    """

    def shapes_of(kind, number):
        wanted = np.flatnonzero((handwritten == kind) & (digit == number))
        return wanted if len(wanted) else np.flatnonzero(digit == number)

    groups = [[shapes_of(kind, number) for number in range(10)] for kind in (0, 1)]
    choices = max(len(group) for row in groups for group in row)
    lookup = np.array([[np.resize(group, choices) for group in row] for row in groups])
    return Atlas(
        distance,
        digit,
        radius.astype(np.float32),
        handwritten,
        lookup.astype(np.int32),
    )


def outline(families: tuple[str, ...], pen_shapes_per_digit: int) -> Atlas:
    """The shapes of an atlas's arrays, if each family has three faces upright.

    Raises:
        UserError: Fonts are missing.
    """
    faces = 3 * len(families or _installed(families))
    count = 10 * (faces + pen_shapes_per_digit)

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype)

    return Atlas(
        array(np.float32, count, FIELD_SIDE, FIELD_SIDE),
        array(np.int32, count),
        array(np.float32, count),
        array(np.bool_, count),
        array(np.int32, 2, 10, count // 10),
    )
