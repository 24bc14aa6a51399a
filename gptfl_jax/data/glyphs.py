"""Digits drawn from font outlines and pen strokes, with the prompts describing them.

The training data of the small generator shipped in `gptfl_jax/assets/glyphs`. No
digit of any data set is read: shapes come from the installed `fontpkg-*` font
families (Google Fonts, extra `fonts`) and from pen paths written down here.

Every shape is kept as a signed distance field, so that one picture is one bilinear
look-up: the coordinates carry position, size, slant, rotation and elastic
deformation, an offset of the distance makes strokes thinner or thicker, and the
distance in pixels gives anti-aliased edges. `draw` is a pure function of a key and
runs under `jit` and `vmap`.
"""

import functools
import importlib.resources
import itertools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from gptfl_jax.errors import UserError

DIGIT_NAMES = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
IMAGE_SIZE = 32

# The words a prompt may use, slot by slot. Index 0 leaves the slot open: the picture
# then shows any of the slot's values.
KINDS = ("", "handwritten", "printed", "pencil", "pen", "marker", "chalk")
WEIGHTS = ("", "thin", "medium", "thick")
SLANTS = ("", "upright", "slanted", "tilted")
BACKGROUNDS = ("", "dark", "light")
FRAMINGS = ("", "filling the frame", "small", "centered")

_FIELD_SIDE = 64  # pixels of a stored distance field
_FIELD_EXTENT = 0.8  # it covers [-0.8, 0.8] digit heights in x and y
_MAX_DISTANCE = 0.5  # digit heights

# Stroke widths of the weight words, in pixels of the 32-pixel picture.
_WIDTHS_PX = {"thin": (1.6, 3.0), "medium": (3.0, 5.0), "thick": (5.0, 8.0)}

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


class Attributes(NamedTuple):
    """What a prompt says: indices into the slots' words, 0 where it says nothing."""

    digit: Int[Array, "..."]
    kind: Int[Array, "..."]
    weight: Int[Array, "..."]
    slant: Int[Array, "..."]
    background: Int[Array, "..."]
    framing: Int[Array, "..."]


# --- Shapes -------------------------------------------------------------------------


@functools.cache
def _pen_paths() -> list[list[list[list[list[float | int]]]]]:
    """Strokes of each form of each digit.

    `pen_paths.json` holds them as way points (x right, y down) in a box about 0.65 wide
    and 1 high. A way point given twice makes a corner; elsewhere the pen moves along a
    smooth curve.
    """
    path = importlib.resources.files("gptfl_jax") / "data" / "pen_paths.json"
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
    axis = (np.arange(_FIELD_SIDE) + 0.5) / _FIELD_SIDE * 2 - 1
    return np.stack(np.meshgrid(axis, axis), -1) * _FIELD_EXTENT


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
    return nearest.reshape(_FIELD_SIDE, _FIELD_SIDE)


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
    side = round(2 * _FIELD_EXTENT * height)
    padded = np.zeros((side, side), bool)
    y, x = (side - height) // 2, (side - width) // 2
    padded[max(y, 0) : y + height, max(x, 0) : x + width] = ink[:side, :side]
    signed = ndimage.distance_transform_edt(~padded) - ndimage.distance_transform_edt(
        padded
    )
    # Distances are between pixel centres; the outline runs half a pixel before.
    signed = (signed - np.sign(signed) * 0.5) / height
    centres = (np.arange(_FIELD_SIDE) + 0.5) / _FIELD_SIDE * side - 0.5
    rows, columns = np.meshgrid(centres, centres, indexing="ij")
    field = ndimage.map_coordinates(signed, [rows, columns], order=1, mode="nearest")
    return np.clip(field, -_MAX_DISTANCE, _MAX_DISTANCE).astype(np.float32)


def covers_digits(path: str) -> bool:
    """Whether the font file maps all ten digits to different, non-empty outlines."""
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True) as font:
        names = [(font.getBestCmap() or {}).get(ord(d)) for d in "0123456789"]
    return None not in names and len(set(names)) == 10


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
    try:
        import fontpkg
        from fontpkg.pil import truetype
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


# --- Pictures -----------------------------------------------------------------------

# How often each word's look is drawn where nothing is asked for.
_KIND_SHARE = (0.7, 0.1, 0.05, 0.05, 0.05, 0.05)
_SLANT_SHARE = (0.45, 0.35, 0.2)
_FRAMING_SHARE = (0.7, 0.15, 0.15)
_DARK_SHARE = {"pencil": 0.1, "pen": 0.1, "marker": 0.15, "chalk": 0.9}
_DARK_SHARE_OTHERWISE = 0.8
# Shear (x per y) of the slant words; rightward is positive.
_SHEAR = ((-0.1, 0.1), (0.2, 0.55), (-0.4, -0.15))
# Digit height in pixels of the framing words.
_HEIGHT_PX = ((30.0, 32.0), (13.0, 19.0), (21.0, 27.0))
# A font's strokes are not thinned below this share of their width, because the
# hairlines of fonts with contrast would vanish.
_THINNEST_SHARE = 0.6


def _one_of(key: PRNGKeyArray, wanted: Int[Array, ""], shares) -> Int[Array, ""]:
    """`wanted`, or where that is 0 a word's index (from 1) drawn by the shares."""
    drawn = 1 + jax.random.choice(key, len(shares), p=jnp.asarray(shares))
    return jnp.where(wanted == 0, drawn, wanted)


def _between(key: PRNGKeyArray, ranges, index: Int[Array, ""]) -> Float[Array, ""]:
    """A uniform draw from the range of the word with this index (from 1)."""
    low, high = jnp.asarray(ranges, jnp.float32)[index - 1]
    return low + (high - low) * jax.random.uniform(key)


def _look_up(
    field: Float[Array, "side side"], position: Float[Array, "... 2"]
) -> Float[Array, "..."]:
    """Bilinear values of a distance field at (x, y) in digit heights."""
    place = (position / _FIELD_EXTENT + 1) / 2 * _FIELD_SIDE - 0.5
    inside = jnp.clip(place, 0, _FIELD_SIDE - 1.001)
    whole = jnp.floor(inside).astype(jnp.int32)
    x, y = (inside - whole)[..., 0], (inside - whole)[..., 1]
    flat = field.reshape(-1)
    corner = whole[..., 1] * _FIELD_SIDE + whole[..., 0]
    top = flat[corner] * (1 - x) + flat[corner + 1] * x
    bottom = flat[corner + _FIELD_SIDE] * (1 - x) + flat[corner + _FIELD_SIDE + 1] * x
    beyond = jnp.abs(place - inside).max(-1) * 2 * _FIELD_EXTENT / _FIELD_SIDE
    return top * (1 - y) + bottom * y + beyond


def _ink_range(
    nearest: Float[Array, " n"], axis: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """First and last place where `nearest` falls below 0, between grid points."""

    def first(values, places):
        i = jnp.maximum(jnp.argmax(values < 0), 1)
        before, after = values[i - 1], jnp.minimum(values[i], -1e-6)
        share = jnp.clip(before / (before - after), 0, 1)
        return places[i - 1] + share * (places[i] - places[i - 1])

    return first(nearest, axis), first(nearest[::-1], axis[::-1])


def _colours(
    key: PRNGKeyArray, kind: Int[Array, ""], dark: Bool[Array, ""]
) -> tuple[Float[Array, "3"], Float[Array, "3"]]:
    """Ink and paper in [0, 1] RGB: grey for most, coloured for pens and markers."""
    keys = jax.random.split(key, 6)
    contrast = jax.random.uniform(keys[0], (2,))
    paper = jnp.where(dark, 0.15 * contrast[0] ** 2, 1 - 0.2 * contrast[0] ** 2)
    ink = jnp.where(dark, 1 - 0.25 * contrast[1], 0.3 * contrast[1])
    is_kind = {word: kind == i for i, word in enumerate(KINDS)}
    ink = jnp.where(is_kind["pencil"], jnp.where(dark, ink - 0.15, ink + 0.2), ink)
    hue = jax.random.uniform(keys[2]) + jnp.arange(3) / 3
    tint = jnp.clip(jnp.abs((hue % 1) * 6 - 3) - 1, 0, 1)  # a saturated colour
    blue = jnp.array([0.1, 0.2, 0.75])
    use_blue = is_kind["pen"] & (jax.random.uniform(keys[3]) < 0.5)
    strength = jnp.where(is_kind["marker"], 0.8, 0.0) + jnp.where(use_blue, 0.9, 0.0)
    colour = jnp.where(use_blue, blue, tint)
    colour = jnp.where(dark, 0.45 + 0.55 * colour, 0.7 * colour)
    board = jnp.array([0.05, 0.16, 0.1]) * jax.random.uniform(keys[4])
    papers = paper + jnp.where(is_kind["chalk"] & dark, board, 0.0)
    return ink + strength * (colour - ink), papers


def draw(
    key: PRNGKeyArray, atlas: Atlas, wanted: Attributes
) -> tuple[UInt8[Array, "32 32 3"], Attributes]:
    """One picture of a digit.

    Args:
        key: Every random choice comes from it.
        atlas: The shapes.
        wanted: The digit, and the words its look must meet; 0 lets the key decide.

    Returns:
        The picture, and the words that describe it, none left open. The weight is
        the one shown: a heavy font cannot be made thin (see `_THINNEST_SHARE`).
    """
    keys = iter(jax.random.split(key, 24))
    kind = _one_of(next(keys), wanted.kind, _KIND_SHARE)
    weight = _one_of(next(keys), wanted.weight, (1 / 3, 1 / 3, 1 / 3))
    slant = _one_of(next(keys), wanted.slant, _SLANT_SHARE)
    framing = _one_of(next(keys), wanted.framing, _FRAMING_SHARE)
    dark_share = jnp.array([_DARK_SHARE.get(k, _DARK_SHARE_OTHERWISE) for k in KINDS])
    dark = jax.random.bernoulli(next(keys), dark_share[kind])
    background = jnp.where(
        wanted.background == 0, jnp.where(dark, 1, 2), wanted.background
    )
    dark = background == 1

    written = (kind != KINDS.index("printed")).astype(jnp.int32)
    choices = jnp.asarray(atlas.lookup)[written, wanted.digit]
    shape = choices[jax.random.randint(next(keys), (), 0, choices.shape[0])]
    field = jnp.asarray(atlas.distance)[shape]
    radius = jnp.asarray(atlas.radius)[shape]

    # Stroke width: `offset` moves the outline so that the widest stroke gets the
    # wanted share of the height, which runs from stroke middle to stroke middle.
    height = _between(next(keys), _HEIGHT_PX, framing)
    width_px = _between(next(keys), tuple(_WIDTHS_PX.values()), weight)
    width_px = width_px * height / IMAGE_SIZE
    reach = width_px / 2 * (1 - 2 * radius) / (height - width_px)
    reach = jnp.maximum(reach, _THINNEST_SHARE * radius)
    offset = reach - radius

    # From picture to shape: rotation, shear and a sum of smooth waves.
    wild = jnp.where(written, 1.0, 0.3)
    turn = wild * 0.12 * jax.random.normal(next(keys))
    shear = _between(next(keys), _SHEAR, slant)
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    bend = jnp.array([[cos, -sin], [sin, cos]]) @ jnp.array([[1.0, shear], [0.0, 1.0]])
    waves = 3
    frequency = 2 * jnp.pi * 0.65 * jax.random.normal(next(keys), (waves, 2))
    phase = 2 * jnp.pi * jax.random.uniform(next(keys), (waves,))
    amplitude = wild * 0.03 * jax.random.normal(next(keys), (waves, 2))
    pressure = wild * 0.15 * jax.random.uniform(next(keys))

    def distance(position: Float[Array, "... 2"]) -> Float[Array, "..."]:
        swing = jnp.sin(position @ frequency.T + phase)
        bent = position @ bend.T + swing @ amplitude
        return _look_up(field, bent) - offset - reach * pressure * swing[..., 0]

    # Find the ink's box on a coarse grid, then lay that box into the frame.
    axis = jnp.linspace(-0.95, 0.95, 40)
    coarse = distance(jnp.stack(jnp.meshgrid(axis, axis), -1))
    left, right = _ink_range(coarse.min(0), axis)
    top, bottom = _ink_range(coarse.min(1), axis)
    natural = height * (right - left) / (bottom - top)
    stretch = jnp.exp(wild * 0.12 * jax.random.normal(next(keys)))
    # A picture filled by the digit is stretched towards 20 x 32, the box NIST's
    # form-processing software fits segmented digits to.
    fill = jnp.where(framing == 1, jax.random.uniform(next(keys)) ** 0.7, 0.0)
    width = jnp.clip(natural ** (1 - fill) * 20.0**fill * stretch, 3, IMAGE_SIZE)
    room = jnp.array([IMAGE_SIZE - width, IMAGE_SIZE - height]) / 2
    wander = jnp.where(framing == 2, 1.0, 0.15) * jnp.maximum(room - 1, 0)
    middle = IMAGE_SIZE / 2 + wander * jax.random.uniform(
        next(keys), (2,), minval=-1, maxval=1
    )
    scale = jnp.array([(right - left) / width, (bottom - top) / height])
    pixels = jnp.arange(IMAGE_SIZE) + 0.5
    offsets = jnp.stack(jnp.meshgrid(pixels, pixels), -1) - middle
    centre = jnp.array([left + right, top + bottom]) / 2
    edge = distance(centre + offsets * scale) / jnp.sqrt(scale[0] * scale[1])

    softness = 1 + 0.6 * jax.random.uniform(next(keys))
    coverage = jnp.clip(0.5 - edge / softness, 0, 1)
    grainy = (kind == KINDS.index("chalk")) | (kind == KINDS.index("pencil"))
    grain = jax.random.uniform(next(keys), coverage.shape)
    coverage = coverage * (1 - jnp.where(grainy, 0.35, 0.0) * grain)
    ink, paper = _colours(next(keys), kind, dark)
    picture = paper + coverage[..., None] * (ink - paper)
    noise = (
        0.02
        * jax.random.uniform(next(keys))
        * jax.random.normal(next(keys), coverage.shape)
    )
    picture = jnp.clip(picture + noise[..., None], 0, 1)
    shown_px = 2 * reach * (height - width_px) / (1 - 2 * radius)
    shown_px = shown_px * IMAGE_SIZE / height
    limits = jnp.array([_WIDTHS_PX["thin"][1], _WIDTHS_PX["medium"][1]])
    weight = 1 + jnp.searchsorted(limits, shown_px)
    shown = Attributes(
        wanted.digit, kind, weight.astype(jnp.int32), slant, background, framing
    )
    return jnp.round(255 * picture).astype(jnp.uint8), shown


# --- Prompts ------------------------------------------------------------------------

_SLOTS = (DIGIT_NAMES, KINDS, WEIGHTS, SLANTS, BACKGROUNDS, FRAMINGS)
_SLOT_SIZES = tuple(len(words) for words in _SLOTS)
# How often a prompt mentions the kind, weight, slant, background and framing.
_MENTIONED = (0.9, 0.7, 0.7, 0.8, 0.75)


def prompt(
    digit: int,
    kind: str = "handwritten",
    weight: str = "",
    slant: str = "",
    background: str = "",
    framing: str = "",
) -> str:
    """The sentence for a digit and a look, in words of `KINDS`, `WEIGHTS`, ...

    >>> prompt(7, weight="thin", slant="slanted", background="dark")
    'a handwritten digit seven, thin slanted strokes on a dark background'
    """
    text = " ".join(f"a {kind} digit {DIGIT_NAMES[digit]}".split())
    strokes = f"{weight} {slant}".strip()
    if strokes:
        text += f", {strokes} strokes"
    if background:
        text += f" on a {background} background"
    if framing:
        text += f", {framing}"
    return text


def all_prompts() -> list[str]:
    """Every sentence `prompt` can make, in the order of `prompt_index`."""
    return [
        prompt(digit, *words)
        for digit, *words in itertools.product(range(10), *_SLOTS[1:])
    ]


def prompt_index(attributes: Attributes) -> Int[Array, "..."]:
    """The place of the attributes' sentence in `all_prompts()`."""
    index = attributes.digit
    for value, size in zip(attributes[1:], _SLOT_SIZES[1:], strict=True):
        index = index * size + value
    return index


def mention(key: PRNGKeyArray, shown: Attributes) -> Attributes:
    """Leaves slots open at random, as a prompt does; the digit is always named."""
    kept = jax.random.bernoulli(key, jnp.asarray(_MENTIONED))
    return Attributes(
        shown.digit,
        *(jnp.where(k, v, 0) for k, v in zip(kept, shown[1:], strict=True)),
    )


def draw_described(
    key: PRNGKeyArray, atlas: Atlas
) -> tuple[UInt8[Array, "32 32 3"], Int[Array, ""]]:
    """A picture of any digit and look, and the index of a prompt that describes it."""
    digit_key, draw_key, mention_key = jax.random.split(key, 3)
    digit = jax.random.randint(digit_key, (), 0, 10)
    open_slot = jnp.int32(0)
    wanted = Attributes(digit, *(open_slot,) * 5)
    picture, shown = draw(draw_key, atlas, wanted)
    return picture, prompt_index(mention(mention_key, shown))
