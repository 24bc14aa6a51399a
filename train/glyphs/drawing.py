"""Pictures of digits, drawn from their shapes to meet the words of a prompt.

The training data of the small generator shipped in `gptfl_jax/assets/glyphs`.

Every shape is kept as a signed distance field, so that one picture is one bilinear
look-up: the coordinates carry position, size, slant, rotation and elastic
deformation, an offset of the distance makes strokes thinner or thicker, and the
distance in pixels gives anti-aliased edges. `draw` is a pure function of a key and
runs under `jit` and `vmap`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from train.glyphs.prompts import KINDS, Attributes, mention, prompt_index
from train.glyphs.shapes import FIELD_EXTENT, FIELD_SIDE, Atlas

IMAGE_SIZE = 32

# Stroke widths of the weight words, in pixels of the 32-pixel picture.
_WIDTHS_PX = {"thin": (1.6, 3.0), "medium": (3.0, 5.0), "thick": (5.0, 8.0)}
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
    place = (position / FIELD_EXTENT + 1) / 2 * FIELD_SIDE - 0.5
    inside = jnp.clip(place, 0, FIELD_SIDE - 1.001)
    whole = jnp.floor(inside).astype(jnp.int32)
    x, y = (inside - whole)[..., 0], (inside - whole)[..., 1]
    flat = field.reshape(-1)
    corner = whole[..., 1] * FIELD_SIDE + whole[..., 0]
    top = flat[corner] * (1 - x) + flat[corner + 1] * x
    bottom = flat[corner + FIELD_SIDE] * (1 - x) + flat[corner + FIELD_SIDE + 1] * x
    beyond = jnp.abs(place - inside).max(-1) * 2 * FIELD_EXTENT / FIELD_SIDE
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
