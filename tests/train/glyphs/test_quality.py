"""Sheets of pictures, and how well they can be read."""

import numpy as np
from PIL import Image

from train.glyphs.quality import digits_accuracy, save_sheet


def test_a_sheet_lays_pictures_out_in_rows(tmp_path):
    pictures = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    pictures = np.broadcast_to(pictures, (7, 32, 32, 3))
    save_sheet(tmp_path / "sheet.png", pictures, columns=3)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 64, 3 * 64, 3)  # the seventh has no full row
    assert sheet[::64, ::64, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_quality_is_read_off_real_digits():
    # Real digits as pictures: a classifier fitted on them knows them.
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.repeat(np.repeat(digits.images * 15, 4, 1), 4, 2).astype(np.uint8)
    pictures = np.repeat(grey[..., None], 3, -1)
    quality = digits_accuracy(pictures[:1415], digits.target[:1415])
    assert quality["accuracy_first_11_sessions"] > 0.99
    assert 0.9 < quality["accuracy_last_3_sessions"] < 1
    # Shuffled labels teach nothing.
    wrong = digits_accuracy(
        pictures[:500], np.random.default_rng(0).permutation(digits.target[:500])
    )
    assert wrong["accuracy"] < 0.3
