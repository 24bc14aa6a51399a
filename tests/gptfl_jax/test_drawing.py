"""Sheets by hand, and pictures of sounds: when and how high."""

import io

import numpy as np
import pytest
from PIL import Image

from gptfl_jax import drawing


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_by_hand(channels):
    shades = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1)
    pictures = np.broadcast_to(shades, (2, 3, 2, 1, channels))
    sheet = drawing.grid(pictures, (4, 2), gap=1)
    assert sheet.shape == (2 * 5 - 1, 3 * 3 - 1, 3)
    assert sheet[::5, ::3, 1].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (sheet[5:9, 3:5] == 4).all()
    assert (sheet[4] == 255).all() and (sheet[:, 2] == 255).all()
    assert drawing.grid(pictures, (2, 1)).shape == (4, 3, 3)


def test_a_png_holds_the_picture():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    for picture in (pixels, Image.fromarray(pixels)):
        data = drawing.encode_png(picture)
        assert (np.asarray(Image.open(io.BytesIO(data))) == pixels).all()
    assert len(drawing.encode_png(0 * pixels, compress_level=0)) > len(
        drawing.encode_png(0 * pixels)
    )


def test_contact_sheet_by_hand():
    def plain(color, size):
        return Image.new("RGB", size, color)

    rows = [
        ("one", [plain("red", (8, 8)), plain("blue", (8, 8))]),
        ("two", [plain("lime", (8, 8))]),
    ]
    sheet = np.asarray(drawing.contact_sheet(rows))
    # 8 pixels enlarged 8 times, 2 pixels between tiles.
    assert sheet.shape[0] == 2 * 66 + 2
    left = sheet.shape[1] - 2 * 66
    assert (sheet[2:66, left : left + 64] == (255, 0, 0)).all()
    assert (sheet[2:66, left + 66 : left + 130] == (0, 0, 255)).all()
    assert (sheet[68:132, left : left + 64] == (0, 255, 0)).all()
    assert (sheet[68:132, left + 64 :] == 255).all()
    names = sheet[:, : left - 2]
    for row in (slice(2, 66), slice(68, 132)):
        assert 20 < (names[row] < 128).all(-1).sum() < 300  # pixels of a short word
    # Large pictures shrink to 128 pixels; 30 classes take two columns of 15.
    rows = [(f"class {i}", [plain("red", (512, 256))] * 3) for i in range(30)]
    sheet = np.asarray(drawing.contact_sheet(rows))
    assert sheet.shape[0] == 15 * 130 + 2
    assert (sheet == (255, 0, 0)).all(-1).sum() == 30 * 3 * 128 * 64


def test_a_picture_shows_when_and_how_high():
    """Half a second of 2 kHz of one shown: the left half, a quarter up of 8 kHz."""
    wave = np.sin(2 * np.pi * 2000 * np.arange(8000) / 16000).astype(np.float32)
    pixels = np.asarray(drawing.sound_picture(wave, 16000, seconds=1.0), int)
    assert pixels.shape == (128, 128, 3)
    assert (pixels[:, 64:] == 255).all()
    below = pixels[43:, :64]
    brightest = below.sum(-1)[:, 10:50].mean(1).argmax()
    assert abs((len(below) - brightest) / len(below) - 0.25) < 0.03
    above = pixels[:42, :64]
    assert ((above != 255).any(-1).sum(0) >= 38).all()  # of full height everywhere
    quiet = np.asarray(drawing.sound_picture(wave / 100, 16000, seconds=1.0), int)[
        :42, :64
    ]
    assert ((quiet != 255).any(-1).sum(0) <= 3).all()
