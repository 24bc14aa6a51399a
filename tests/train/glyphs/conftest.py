"""Shapes that need no font."""

import numpy as np
import pytest

from train.glyphs import shapes


@pytest.fixture(scope="module")
def atlas() -> shapes.Atlas:
    """Pen paths alone: no font is needed."""
    fields, digits = shapes.pen_shapes(per_digit=6, seed=1)
    no_width = np.zeros(len(digits), np.float32)
    return shapes.make_atlas(fields, digits, no_width, np.ones(len(digits), bool))
