"""Random changes of pictures and of sounds in training, as a config asks for them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import (
    Array,
    Float,
    Int,
    Num,
    PRNGKeyArray,
    PyTree,
)
from ml_collections import ConfigDict

from gptfl_jax.configuration import AUGMENTATION
from gptfl_jax.data.datasets import Source
from gptfl_jax.errors import ConfigError

Inputs = PyTree[Num[Array, "batch ..."]]
"""Mostly pixels [batch, height, width, channels]."""


def from_config(
    section: str, settings: ConfigDict, source: Source
) -> Callable[[PRNGKeyArray, Any], Any] | None:
    """The augmentation of a section of the config; None where it asks for none.

    Args:
        section: its name, for errors.
        settings: with the fields of `configuration.AUGMENTATION`.
        source: the data, of which the kind decides.

    Raises:
        ConfigError: a field is set that is for data of the other kind.
    """
    kinds = ("pictures", "sounds")
    kind = kinds[source.sounds is not None]
    other = kinds[source.sounds is None]
    for name, field in AUGMENTATION[other].items():
        if settings[name] != field.default:
            raise ConfigError(
                f"config.{section}.{name} = {settings[name]!r} is for {other}, and the "
                f"data are {kind}: set it back to {field.default!r}, or see "
                + ", ".join(f"config.{section}.{each}" for each in AUGMENTATION[kind])
            )
    fields = AUGMENTATION[kind]
    # Of themselves these two change nothing.
    active = [name for name in fields if name not in ("time_mask_share", "crop_aspect")]
    if not any(settings[name] for name in active):
        return None
    if kind == "pictures":
        chosen = {name: settings[name] for name in fields}
        return Augmentation(**chosen, cutout_fill=source.mean)
    return SpecAugment(
        tempo=settings.tempo,
        warp=settings.warp,
        time_masks=settings.time_masks,
        time_width=settings.time_mask_width,
        time_share=settings.time_mask_share,
        frequency_masks=settings.frequency_masks,
        frequency_width=settings.frequency_mask_width,
        shift=settings.time_shift,
    )


class Augmentation(NamedTuple):
    """Random changes of pictures, drawn for each example by its own key.

    In this order: affine map (bilinear, black outside), resized crop, crop, flip,
    colours (brightness, contrast, saturation, hue), cutout. 0 and False switch a part
    off; with all of them off, inputs of any kind stay as they are. Resized crop and
    colours follow torchvision's RandomResizedCrop (bilinear) and ColorJitter, but for
    the order of the colours' parts, which is drawn there.
    """

    crop_padding: int = 0
    """Pixels of black put around the picture, of which a random crop is taken."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""
    cutout: int = 0
    """Side in pixels of a square painted over at a random centre (arXiv 1708.04552)."""
    shift: float = 0.0
    """Largest move along each axis, as a share of the side."""
    scale: float = 0.0
    """Size changes by a factor in [1 - scale, 1 + scale]."""
    rotate: float = 0.0
    """Largest rotation, in degrees."""
    shear: float = 0.0
    """Largest horizontal slant, in degrees."""
    crop_area: float = 0.0
    """Least share of the area that a resized crop has."""
    crop_aspect: float = 4 / 3
    """Largest ratio of its sides, either way, evenly in the logarithm."""
    brightness: float = 0.0
    """Colours change by a factor in [max(0, 1 - brightness), 1 + brightness]."""
    contrast: float = 0.0
    """Likewise their distance from the picture's mean grey."""
    saturation: float = 0.0
    """Likewise their distance from the pixel's grey."""
    hue: float = 0.0
    """Largest turn of the hue, as a share of the colour circle."""
    cutout_fill: tuple[float, ...] = (0.0,)
    """What cutout paints, per channel, in 0..1: the mean becomes 0 when normalised."""

    def __call__(self, key: PRNGKeyArray, inputs: Inputs) -> Inputs:
        geometry = self._affine or self.crop_area or self.crop_padding or self.flip
        if not (geometry or self._colours or self.cutout):
            return inputs
        # fold_in, not split: an example's draw must not change with padding rows.
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
            jnp.arange(inputs.shape[0])
        )
        return jax.vmap(self._augment)(keys, inputs)

    @property
    def _affine(self) -> bool:
        return bool(self.shift or self.scale or self.rotate or self.shear)

    @property
    def _colours(self) -> bool:
        return bool(self.brightness or self.contrast or self.saturation or self.hue)

    def _augment(self, key, image):
        affine, crop, flip, cutout = jax.random.split(key, 4)
        if self._affine:
            image = self._warp(affine, image)
        if self.crop_area:
            image = self._crop_and_resize(jax.random.fold_in(crop, 1), image)
        if self.crop_padding:
            pad = self.crop_padding
            padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            top, left = jax.random.randint(crop, (2,), 0, 2 * pad + 1, jnp.int32)
            image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
        if self.flip:
            mirrored = jax.random.uniform(flip, (), jnp.float32) < 0.5
            image = jnp.where(mirrored, image[:, ::-1], image)
        if self._colours:
            image = self._jitter(jax.random.fold_in(cutout, 1), image)
        if self.cutout:
            image = self._cut_out(cutout, image)
        return image

    def _warp(self, key, image):
        height, width = image.shape[:2]
        draw = jax.random.uniform(key, (5,), jnp.float32, -1, 1)
        angle, slant = (
            jnp.deg2rad(draw[0] * self.rotate),
            jnp.deg2rad(draw[1] * self.shear),
        )
        factor = 1 + draw[2] * self.scale
        down, right = draw[3] * self.shift * height, draw[4] * self.shift * width
        # Each new pixel is read at the inverse map of its place about the centre.
        y = jnp.arange(height)[:, None] - (height - 1) / 2 - down
        x = jnp.arange(width)[None, :] - (width - 1) / 2 - right
        old_y = (jnp.cos(angle) * y - jnp.sin(angle) * x) / factor
        old_x = (jnp.sin(angle) * y + jnp.cos(angle) * x) / factor
        old_x = old_x + jnp.tan(slant) * old_y
        return bilinear(image, old_y + (height - 1) / 2, old_x + (width - 1) / 2)

    def _crop_and_resize(self, key, image):
        height, width = image.shape[:2]
        area_key, aspect_key, place_key = jax.random.split(key, 3)
        # The first of ten draws that fits; else the largest in the middle.
        area = jax.random.uniform(area_key, (10,), jnp.float32, self.crop_area, 1)
        most = jnp.log(self.crop_aspect)
        aspect = jax.random.uniform(aspect_key, (10,), jnp.float32, -most, most)
        aspect, area = jnp.exp(aspect), area * (height * width)
        rows = jnp.round(jnp.sqrt(area / aspect))
        columns = jnp.round(jnp.sqrt(area * aspect))
        fits = (rows >= 1) & (rows <= height) & (columns >= 1) & (columns <= width)
        first = jnp.argmax(fits)
        largest = (
            min(height, round(width * self.crop_aspect)),
            min(width, round(height * self.crop_aspect)),
        )
        size = jnp.where(
            fits.any(), jnp.stack([rows[first], columns[first]]), jnp.array(largest)
        )
        spare = jnp.asarray(image.shape[:2]) - size
        place = jnp.floor(
            jax.random.uniform(place_key, (2,), jnp.float32) * (spare + 1)
        )
        start = jnp.where(fits.any(), jnp.minimum(place, spare), jnp.floor(spare / 2))
        return resized_crop(image, start, size)

    def _jitter(self, key, image):
        draw = jax.random.uniform(key, (4,), jnp.float32, -1, 1)

        def factor(index, most):
            low = max(0.0, 1 - most)
            return low + (draw[index] + 1) / 2 * (1 + most - low)

        if self.brightness:
            image = blend(image, 0, factor(0, self.brightness))
        if self.contrast:
            image = blend(image, grey(image).mean(), factor(1, self.contrast))
        if image.shape[-1] != 3:
            return image
        if self.saturation:
            image = blend(image, grey(image), factor(2, self.saturation))
        if self.hue:
            image = turn_hue(image, draw[3] * self.hue)
        return image

    def _cut_out(self, key, image):
        height, width = image.shape[:2]
        draw = jax.random.uniform(key, (2,), jnp.float32)
        top = jnp.floor(draw[0] * height) - self.cutout // 2
        left = jnp.floor(draw[1] * width) - self.cutout // 2
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
        inside = (rows >= top) & (rows < top + self.cutout)
        inside &= (columns >= left) & (columns < left + self.cutout)
        fill = jnp.asarray(self.cutout_fill, image.dtype)
        return jnp.where(inside[..., None], fill, image)


def bilinear(
    image: Float[Array, "height width channels"],
    rows: Float[Array, "new_height new_width"],
    columns: Float[Array, "new_height new_width"],
) -> Float[Array, "new_height new_width channels"]:
    """Reads `image` between its pixels; zero outside."""
    height, width = image.shape[:2]
    top, left = jnp.floor(rows), jnp.floor(columns)
    result = 0
    for step_y in (0, 1):
        for step_x in (0, 1):
            y, x = top + step_y, left + step_x
            weight = (1 - jnp.abs(rows - y)) * (1 - jnp.abs(columns - x))
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            value = image[
                y.astype(jnp.int32).clip(0, height - 1),
                x.astype(jnp.int32).clip(0, width - 1),
            ]
            weight = jnp.where(inside, weight, 0).astype(image.dtype)
            result = result + weight[..., None] * value
    return result


def resized_crop(
    image: Float[Array, "height width channels"],
    start: Float[Array, " 2"],
    size: Float[Array, " 2"],
) -> Float[Array, "height width channels"]:
    """A box of a picture in the size of the whole, bilinear, its edges repeated.

    Args:
        image: any values.
        start: first row and column of the box.
        size: its rows and columns.
    """

    def weights(length, first, count):
        """[length, length]: the share of each old pixel in each new one."""
        at = (jnp.arange(length) + 0.5) * count / length - 0.5
        at = first + at.clip(0, count - 1)
        near = 1 - jnp.abs(at[:, None] - jnp.arange(length))
        return jnp.maximum(near, 0).astype(image.dtype)

    rows = weights(image.shape[0], start[0], size[0])
    columns = weights(image.shape[1], start[1], size[1])
    # In full precision: pixels are no activations.
    highest = jax.lax.Precision.HIGHEST
    image = jnp.einsum("ih,hwc->iwc", rows, image, precision=highest)
    return jnp.einsum("jw,iwc->ijc", columns, image, precision=highest)


def grey(
    image: Float[Array, "height width channels"],
) -> Float[Array, "height width 1"]:
    """The luma of RGB (BT.601); the mean of other channels."""
    if image.shape[-1] != 3:
        return image.mean(-1, keepdims=True)
    return (image * jnp.asarray([0.299, 0.587, 0.114], image.dtype)).sum(
        -1, keepdims=True
    )


def blend(
    image: Float[Array, "height width channels"],
    other: Float[Array, "..."] | int,
    factor: Float[Array, ""],
) -> Float[Array, "height width channels"]:
    """`other` + `factor` times the way from there to `image`, kept within 0..1."""
    factor = factor.astype(image.dtype)
    return (other + factor * (image - other)).clip(0, 1)


def turn_hue(
    image: Float[Array, "height width 3"], turn: Float[Array, ""]
) -> Float[Array, "height width 3"]:
    """RGB in 0..1 with its hue in HSV turned by a share of the circle."""
    value, least = image.max(-1), image.min(-1)
    chroma = value - least
    red, green, blue = jnp.moveaxis(image, -1, 0)
    safe = jnp.where(chroma > 0, chroma, 1)
    sixth = jnp.select(
        [value == red, value == green],
        [(green - blue) / safe, 2 + (blue - red) / safe],
        4 + (red - green) / safe,
    )
    sixth = sixth + 6 * turn.astype(image.dtype)
    # Each channel falls from the value by the chroma as the hue leaves it.
    at = (jnp.array([5, 3, 1], image.dtype) + sixth[..., None]) % 6
    fall = jnp.minimum(at, 4 - at).clip(0, 1)
    return value[..., None] - chroma[..., None] * fall


class SpecAugment(NamedTuple):
    """Random changes of features, drawn for each example by its own key.

    In this order: a stretch of time and one of frequency (linear interpolation), a
    shift in time, and the masks of SpecAugment: A Simple Data Augmentation Method for
    Automatic Speech Recognition (arXiv 1904.08779), whose width is drawn from 0 to the
    largest, inclusive, before their place. 0 switches a part off.
    """

    tempo: float = 0.0
    """Clips become up to exp(tempo) times longer or shorter, evenly in the logarithm;
    what then leaves the array is lost."""
    warp: float = 0.0
    """Frequency, in bands, is multiplied by a factor in exp(-warp)..exp(warp): voices
    of other vocal tracts (Jaitly and Hinton 2013)."""
    time_masks: int = 0
    time_width: int = 0
    """Largest width of a time mask in frames, and never more than `time_share`."""
    time_share: float = 0.2
    """Largest width of a time mask as a share of the clip's real frames."""
    frequency_masks: int = 0
    frequency_width: int = 0
    """Largest width of a frequency mask in bands."""
    shift: int = 0
    """Largest move in frames. What leaves the array is lost; the length moves with the
    end of the clip, of which at least a frame is kept."""
    fill: float = 0.0
    """The value in masks and before a moved clip: 0 is the mean of standardised
    features. Padding is 0 always."""

    def __call__(
        self,
        key: PRNGKeyArray,
        inputs: tuple[Float[Array, "batch frames bands"], Int[Array, " batch"]],
    ) -> tuple[Float[Array, "batch frames bands"], Int[Array, " batch"]]:
        features, lengths = inputs
        # fold_in, not split: an example's draw must not change with padding rows.
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
            jnp.arange(features.shape[0])
        )
        return jax.vmap(self._augment)(keys, features, lengths)

    def _augment(self, key, features, length):
        stretch, shift, time, frequency = jax.random.split(key, 4)
        frames, bands = features.shape
        if self.tempo or self.warp:
            features, length = self._stretch(stretch, features, length)
        if self.shift:
            features, length = self._move(shift, features, length)
        at = jnp.arange(frames)
        hidden = jnp.zeros((frames, bands), bool)
        share = jnp.floor(self.time_share * length).astype(jnp.int32)
        widest = jnp.minimum(self.time_width, share)
        for each in jax.random.split(time, self.time_masks) if self.time_masks else ():
            hidden |= _stripe(each, at, widest, length)[:, None]
        widest, at = min(self.frequency_width, bands), jnp.arange(bands)
        masks = self.frequency_masks
        for each in jax.random.split(frequency, masks) if masks else ():
            hidden |= _stripe(each, at, widest, bands)
        # Padding stays as it is.
        hidden &= (jnp.arange(frames) < length)[:, None]
        return jnp.where(hidden, self.fill, features).astype(features.dtype), length

    def _stretch(self, key, features, length):
        frames, bands = features.shape
        tempo, warp = jnp.exp(
            jax.random.uniform(key, (2,), jnp.float32, -1, 1)
            * jnp.asarray([self.tempo, self.warp], jnp.float32)
        )
        new_length = jnp.round(length * tempo).astype(jnp.int32).clip(1, frames)
        # The first frame stays the first, and the last becomes the last.
        pace = (length - 1) / jnp.maximum(length * tempo - 1, 1)
        at = jnp.minimum(jnp.arange(frames) * pace, length - 1)
        stretched = _interpolate(features, at)
        stretched = _interpolate(stretched.T, jnp.arange(bands) * warp).T
        real = jnp.arange(frames) < new_length
        return jnp.where(real[:, None], stretched, 0), new_length

    def _move(self, key, features, length):
        frames = features.shape[0]
        earlier = jnp.minimum(self.shift, length - 1)
        later = min(self.shift, frames - 1)
        move = jax.random.randint(key, (), -earlier, later + 1, jnp.int32)
        source = jnp.arange(frames) - move
        real = (source >= 0) & (source < length)
        moved = features[source.clip(0, frames - 1)]
        empty = jnp.where(source < 0, self.fill, 0)
        length = (length + move).clip(1, frames)
        return jnp.where(real[:, None], moved, empty[:, None]), length


def _interpolate(rows, at):
    """Rows between the given ones; behind the last it is repeated."""
    at = jnp.minimum(at, rows.shape[0] - 1)
    below = jnp.floor(at).astype(jnp.int32)
    above = jnp.minimum(below + 1, rows.shape[0] - 1)
    weight = (at - below).astype(rows.dtype)[:, None]
    return (1 - weight) * rows[below] + weight * rows[above]


def _stripe(key, at, widest, size):
    """Marks a random range of `at`, at most `widest` wide, inside 0..size - 1."""
    width_key, start_key = jax.random.split(key)
    width = jax.random.randint(width_key, (), 0, widest + 1, jnp.int32)
    start = jax.random.randint(start_key, (), 0, size - width + 1, jnp.int32)
    return (at >= start) & (at < start + width)
