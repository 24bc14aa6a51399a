"""Pictures as files and side by side, and pictures of sounds."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont


def encode_png(
    picture: Image.Image | UInt8[np.ndarray, "height width channels"],
    compress_level: int = 6,
) -> bytes:
    """A picture as a PNG file.

    Args:
        picture: of 3 channels where it is an array.
        compress_level: zlib's, from 0, fast, to 9, small.
    """
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


def grid(
    pictures: UInt8[np.ndarray, "rows columns height width channels"],
    size: tuple[int, int],
    gap: int = 0,
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Pictures in rows and columns, enlarged without smoothing.

    Args:
        pictures: of 1 or 3 channels.
        size: height and width that each gets, in pixels.
        gap: white pixels between two of them.

    Returns:
        `[rows * (size[0] + gap) - gap, columns * (size[1] + gap) - gap, 3]`.
    """
    rows, columns = pictures.shape[:2]
    pictures = np.broadcast_to(pictures, (*pictures.shape[:4], 3))
    height, width = size[0] + gap, size[1] + gap
    sheet = np.full((rows * height - gap, columns * width - gap, 3), 255, np.uint8)
    for row, column in np.ndindex(rows, columns):
        image = Image.fromarray(pictures[row, column])
        enlarged = image.resize(size[::-1], Image.Resampling.NEAREST)
        top, left = row * height, column * width
        sheet[top : top + size[0], left : left + size[1]] = np.asarray(enlarged)
    return sheet


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], tile: int = 64
) -> Image.Image | None:
    """Images in rows, each row with its name before it; None without any.

    Small images are enlarged by a whole factor without smoothing, large ones shrunk,
    to tiles of `tile` to 2 x `tile` pixels. More than 25 classes go side by side.
    """
    if not any(images for _, images in rows):
        return None
    largest = max(max(image.size) for _, images in rows for image in images)
    side = largest * max(1, tile // largest) if largest < 2 * tile else 2 * tile
    font = ImageFont.load_default(size=14)
    names = [name if len(name) <= 28 else f"{name[:27]}\u2026" for name, _ in rows]
    label_width = math.ceil(max(font.getlength(name) for name in names)) + 16
    gap = 2
    columns = math.ceil(len(rows) / 25)
    per_column = math.ceil(len(rows) / columns)
    column_width = label_width + max(len(images) for _, images in rows) * (side + gap)
    size = (columns * column_width, per_column * (side + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, (_, images)) in enumerate(zip(names, rows, strict=True)):
        column, row = divmod(number, per_column)
        x, y = column * column_width, row * (side + gap) + gap
        draw.text((x + 8, y + side // 2), name, fill="black", font=font, anchor="lm")
        for position, image in enumerate(images):
            smooth = Image.Resampling.BOX if max(image.size) > side else 0
            scale = side / max(image.size)
            size = tuple(max(1, round(length * scale)) for length in image.size)
            place = (x + label_width + position * (side + gap), y)
            sheet.paste(image.resize(size, smooth), place)
    return sheet


def sound_picture(
    wave: Float[np.ndarray, " samples"], rate: int, seconds: float, side: int = 128
) -> Image.Image:
    """A waveform above its spectrogram, `seconds` wide, as a square of `side` pixels.

    The spectrogram covers 80 dB below its loudest part, frequencies from 0 to half of
    `rate` from bottom to top.
    """
    width = max(2, round(side * min(1.0, len(wave) / rate / seconds)))
    above = side // 3
    image = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(image)
    edges = np.linspace(0, len(wave), width + 1).astype(int)
    for x, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        part = wave[begin : max(end, begin + 1)]
        low, high = ((1 - v) * (above - 1) / 2 for v in (part.min(), part.max()))
        draw.line([(x, high), (x, low)], fill="#31688e")
    colours = _spectrogram(wave, rate, width, side - above - 1)
    image.paste(Image.fromarray(colours), (0, above + 1))
    return image


def _spectrogram(
    wave: Float[np.ndarray, " samples"], rate: int, width: int, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    size = max(2 * height, 1 << round(np.log2(0.03 * rate)))
    padded = np.pad(wave, size // 2)
    starts = np.linspace(0, len(wave) - 1, width).astype(int)
    frames = np.stack([padded[start : start + size] for start in starts])
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(size), axis=1)))
    rows = np.array_split(power[:, 1:], height, axis=1)
    bands = np.stack([row.max(1) for row in rows])[::-1]
    level = 10 * np.log10(np.maximum(bands, 1e-12))
    shade = np.clip((level - level.max()) / 80 + 1, 0, 1)
    import matplotlib  # slow to import, and pictures go without

    return matplotlib.colormaps["viridis"](shade, bytes=True)[..., :3]
