import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from gptfl_jax.data import images


def test_box_resize_takes_area_means():
    image = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1) * 20
    # 3 -> 2: a new pixel covers 1.5 x 1.5 old ones, weights 1, 1/2 along each axis.
    x = image[0, ..., 0].astype(float)
    corner = (x[0, 0] + x[0, 1] / 2 + x[1, 0] / 2 + x[1, 1] / 4) / 2.25
    resized = images.box_resize(image, 2)
    assert resized[0, 0, 0, 0] == round(corner)
    assert images.box_resize(image, 1).item() == 80
    doubled = images.box_resize(image, 6)[0, ..., 0]
    np.testing.assert_array_equal(doubled, x.repeat(2, 0).repeat(2, 1))
    assert images.box_resize(image, 3) is image


def test_box_resize_of_another_proportion():
    image = np.zeros((1, 2, 4, 1), np.uint8)
    image[0, :, 2:] = 100
    np.testing.assert_array_equal(
        images.box_resize(image, 2)[0, ..., 0], [[0, 100], [0, 100]]
    )


def test_channels():
    rgb = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]], np.uint8)
    grey = images.convert_channels(rgb, 1)
    assert grey[0, 0, :, 0].tolist() == [76, 150, 29]  # 255 x (0.299, 0.587, 0.114)
    assert images.convert_channels(grey, 3)[0, 0, 0].tolist() == [76, 76, 76]
    with pytest.raises(ValueError, match="3 channels into 2"):
        images.convert_channels(rgb, 2)


def test_large_sets_are_converted_in_parts():
    pixels = np.random.default_rng(0).integers(0, 256, (1100, 4, 4, 3), np.uint8)
    whole = images.convert(pixels, 2, 1)
    parts = [images.convert(pixels[i : i + 1], 2, 1) for i in (0, 511, 512, 1099)]
    np.testing.assert_array_equal(whole[[0, 511, 512, 1099]], np.concatenate(parts))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, [255]),
        ("L", 7, [7]),
        ("I;16", 65535, [255]),
        ("I;16", 257 * 9, [9]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("LA", (10, 255), [10, 10, 10]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
    ],
)
def test_every_mode_is_read(tmp_path, mode, value, expected):
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    PIL.Image.new(mode, (2, 2), value).save(path)
    picture = images.read_picture(path, 0, 0)
    assert picture.pixels[0, 0].tolist() == expected
    assert picture.size == (2, 2)


def test_palettes_are_resolved(tmp_path):
    image = PIL.Image.new("RGB", (2, 2), (9, 8, 7)).quantize(4)
    image.save(tmp_path / "palette.png")
    picture = images.read_picture(tmp_path / "palette.png", 0, 0)
    assert picture.mode == "P" and picture.pixels[1, 1].tolist() == [9, 8, 7]


def test_constants_fit_the_channels():
    assert images.normalisation_for((0.5,), 3).tolist() == [0.5] * 3
    assert images.normalisation_for((0.25, 0.5, 0.75), 1).tolist() == [0.5]
    with pytest.raises(ValueError, match="2 constants for 3 channels"):
        images.normalisation_for((0.25, 0.5), 3)


PEAK = """
import pathlib, resource, sys
from gptfl_jax.data import images, picture_cache

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = peak_mb()
paths = sorted(pathlib.Path(sys.argv[1]).glob("*.png"))
read = lambda path: images.read_picture(path, 8, 3)
_, pictures = picture_cache.decode_files(paths, read, [], "")
assert [p.size for p in pictures] == [(8192, 8192)] * 6, pictures
print(peak_mb() - before)
"""


@pytest.mark.long
def test_threads_share_the_memory_for_large_pictures(tmp_path):
    """Each of the largest pictures takes over a gigabyte: they come one by one."""
    PIL.Image.new("RGB", (8192, 8192), "red").save(tmp_path / "0.png", compress_level=1)
    for number in range(1, 6):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    run = subprocess.run(command, stdout=subprocess.PIPE, timeout=300, check=True)
    assert float(run.stdout) < 1900


def test_large_pictures_are_resized_by_channel(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 30, 20, 3), np.uint8)
    whole = images.box_resize(pixels, 7)
    monkeypatch.setattr(images, "_LARGE", 100)
    # Sums in another order may round a tie to its other side.
    assert np.abs(images.box_resize(pixels, 7).astype(int) - whole).max() <= 1


def test_only_pictures_are_opened_as_pictures(tmp_path, monkeypatch):
    """Pillow would start Ghostscript for the first."""
    (tmp_path / "cat").mkdir()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    pixels = PIL.Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    for form in ("EPS", "PCX", "TGA", "SGI", "ICNS"):
        pixels.resize((32, 32)).save(tmp_path / "cat" / f"{form}.png", form)
    (tmp_path / "cat" / "a.png").write_bytes(postscript)
    monkeypatch.setattr(
        PIL.EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("started")
    )
    for path in (tmp_path / "cat").iterdir():
        picture = images.read_picture(path, 4, 3)
        assert picture.pixels is None, path
        assert "cannot be decoded (cannot identify image file" in picture.error
