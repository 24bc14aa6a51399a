"""Pictures to arrays: decoding, box-filter resizing, and conversion of channels."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Shaped, UInt8

from gptfl_jax import user_files

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
"""Of the names of pictures, in small letters."""

# ITU-R BT.601 luma, what "grey" means to every picture library.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# Pillow tells formats by their content, and knows some that start other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Of one picture, and of all that are decoded at a time: a pixel takes up to 20 bytes on
# the way to an array. The largest cameras have 50 megapixels.
_PIXELS = user_files.Allowance(2**26)
# A picture lies in one piece in Pillow: of pieces of 16 MB, its default, every thread's
# allocator would keep those of its largest picture.
PIL.Image.core.set_block_size(2**29)
# Pixels from which a picture is resized a channel at a time.
_LARGE = 2**24
# A file needs no more than its pixels: 8 bytes each, and as much again for the rest.
_MOST_BYTES = 16 * _PIXELS.most


def box_resize(
    images: UInt8[np.ndarray, "batch height width channels"], size: int
) -> UInt8[np.ndarray, "batch {size} {size} channels"]:
    """Resizes pictures to `size` x `size` pixels, each the mean of the area it covers.

    For a whole ratio this is the mean of blocks (32x32 to 8x8: blocks of 4x4, as
    scikit-learn's digits were made); enlarging repeats pixels. The sums are exact and
    rounded once.
    """
    if images.shape[1:3] == (size, size):
        return images
    if images.shape[1] * images.shape[2] > _LARGE and images.shape[3] > 1:
        # In float32 a channel takes as much memory as the whole picture in the file.
        channels = [
            box_resize(images[..., channel, None], size)
            for channel in range(images.shape[3])
        ]
        return np.concatenate(channels, axis=-1)
    rows = _box_weights(images.shape[1], size)
    columns = _box_weights(images.shape[2], size)
    resized = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for start in range(0, len(images), 512):  # float32 copies of 512 pictures at most
        part = images[start : start + 512].astype(np.float32)
        part = np.einsum("ih,bhwc->biwc", rows, part, optimize=True)
        part = np.einsum("jw,biwc->bijc", columns, part, optimize=True)
        resized[start : start + 512] = np.rint(part).clip(0, 255)
    return resized


def _box_weights(length: int, size: int) -> np.ndarray:
    """[size, length]: the share of each old pixel in each new one; rows sum to 1."""
    edges = np.arange(size + 1) * (length / size)
    low, high = edges[:-1, None], edges[1:, None]
    old = np.arange(length)[None]
    overlap = np.minimum(high, old + 1) - np.maximum(low, old)
    return (overlap.clip(0) * (size / length)).astype(np.float32)


def convert_channels(
    images: UInt8[np.ndarray, "batch height width channels"], channels: int
) -> UInt8[np.ndarray, "batch height width {channels}"]:
    """Turns grey pictures into RGB by repetition, or RGB ones into grey (BT.601)."""
    if images.shape[-1] == channels:
        return images
    if images.shape[-1] == 1 and channels == 3:
        return np.repeat(images, 3, axis=-1)
    if images.shape[-1] == 3 and channels == 1:
        grey = np.empty((*images.shape[:-1], 1), np.uint8)
        for start in range(0, len(images), 512):
            part = images[start : start + 512].astype(np.float32) @ _LUMA
            grey[start : start + 512, ..., 0] = np.rint(part)
        return grey
    raise ValueError(f"cannot turn {images.shape[-1]} channels into {channels}")


def convert(
    images: UInt8[np.ndarray, "batch height width channels"],
    image_size: int,
    channels: int,
) -> UInt8[np.ndarray, "batch new_height new_width new_channels"]:
    """`convert_channels` and `box_resize` in one; 0 leaves size or channels alone."""
    images = convert_channels(images, channels or images.shape[-1])
    return box_resize(images, image_size) if image_size else images


def middle_square(
    pixels: UInt8[np.ndarray, "height width channels"],
) -> UInt8[np.ndarray, "side side channels"]:
    """The largest square in the middle of a picture."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


class Picture(NamedTuple):
    """One decoded file, or the reason why there is none."""

    pixels: UInt8[np.ndarray, "height width channels"] | None
    """After `convert`."""
    size: tuple[int, int]
    """Width and height in the file."""
    mode: str
    """Mode in the file, as Pillow names it: RGB, L, RGBA, P, ..."""
    error: str = ""


class Embedded(NamedTuple):
    """A picture's file that is a cell of a table."""

    where: str
    """Table and row."""
    content: bytes

    def __str__(self) -> str:
        return self.where


@contextlib.contextmanager
def opened(path: str | os.PathLike[str] | Embedded) -> Iterator[PIL.Image.Image]:
    """A picture, decoded.

    Raises:
        Unreadable: the file is missing, damaged, or of none of the known formats; or it
            has more pixels than a picture may have.
    """
    # The allowance is given back last, when the picture's memory is free.
    with contextlib.ExitStack() as allowance, contextlib.ExitStack() as stack:
        file = stack.enter_context(
            io.BytesIO(path.content)
            if isinstance(path, Embedded)
            else user_files.open_plain(path, _MOST_BYTES)
        )
        try:
            image = stack.enter_context(PIL.Image.open(file, formats=_FORMATS))
            width, height = image.size
            if width * height > _PIXELS.most:
                raise ValueError(f"{width}x{height} pixels, more than {_PIXELS.most:,}")
            allowance.enter_context(_PIXELS.hold(width * height))
            image.load()
        except Exception as error:  # Pillow reports broken files as almost anything
            reason = f"cannot be decoded ({user_files.brief(error)})"
            raise user_files.Unreadable(path, reason) from error
        yield image


def read_picture(
    path: pathlib.Path | Embedded,
    image_size: int,
    channels: int,
    modes: Sequence[str] | None = None,
    crop: bool = False,
) -> Picture:
    """Decodes one file and converts it to `image_size` and `channels`.

    Args:
        modes: Pillow modes to accept; others are an error. None accepts all: palettes
            are resolved, transparent pixels put on white, 16-bit grey scaled down.
        crop: take the largest square in the middle first, to keep proportions.

    Returns:
        the picture. An unreadable file is no exception but has `error` set: data sets
        with a broken file in them are common, and what to do is the caller's decision.
    """
    try:
        with opened(path) as image:
            size, mode = image.size, image.mode
            if modes is not None and mode not in modes:
                return Picture(
                    None, size, mode, f"mode {mode}, not {' or '.join(modes)}"
                )
            pixels = _to_array(image)
            if crop:
                pixels = middle_square(pixels)
            pixels = convert(pixels[None], image_size, channels)[0]
    except user_files.Unreadable as error:
        return Picture(None, (0, 0), "", error.reason)
    return Picture(pixels, size, mode)


def _to_array(image: PIL.Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey and its kin
        pixels = np.asarray(image, np.float32)
        scale = 255 / 65535 if pixels.max(initial=0) > 255 else 1
        return np.rint(pixels * scale).clip(0, 255).astype(np.uint8)[..., None]
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def stack(
    pixels: Sequence[UInt8[np.ndarray, "height width _"]],
) -> UInt8[np.ndarray, "pictures height width channels"]:
    """Pictures of one size in one array; grey ones among RGB ones become RGB."""
    channels = max(p.shape[-1] for p in pixels)
    stacked = np.empty((len(pixels), *pixels[0].shape[:2], channels), np.uint8)
    for index, picture in enumerate(pixels):
        stacked[index] = picture  # one channel is broadcast to all
    return stacked


def normalisation_for(
    constants: Sequence[float], channels: int
) -> Shaped[np.ndarray, " {channels}"]:
    """Fits per-channel constants to `channels`: repeats one, or averages several."""
    values = np.asarray(constants, np.float32).reshape(-1)
    if len(values) == channels:
        return values
    if len(values) == 1:
        return np.repeat(values, channels)
    if channels == 1:
        return values.mean(keepdims=True)
    raise ValueError(f"{len(values)} constants for {channels} channels")
