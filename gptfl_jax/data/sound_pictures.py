"""Pictures of recordings: waveforms with their spectrograms."""

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw


def draw(
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
    return matplotlib.colormaps["viridis"](shade, bytes=True)[..., :3]
