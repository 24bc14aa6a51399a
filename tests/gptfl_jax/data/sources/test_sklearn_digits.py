import difflib

import numpy as np
from sklearn.datasets import load_digits

from gptfl_jax.data import sources
from gptfl_jax.data.sources.sklearn_digits import BLOCKS


def test_digits_blocks_are_copies_of_one_form():
    labels = load_digits().target
    ends = (*BLOCKS[1:], len(labels))
    blocks = [
        labels[start:end].tolist() for start, end in zip(BLOCKS, ends, strict=True)
    ]
    assert len(blocks) == 14
    form = blocks[0]
    assert len(form) == 130 and form[:30] == list(range(10)) * 3
    for block in blocks:
        # A block is the form with a few digits missing or misread, nothing else.
        matcher = difflib.SequenceMatcher(None, form, block, autojunk=False)
        assert matcher.ratio() > 0.95
        assert 122 <= len(block) <= 130
        assert block[:17] in (form[:17], form[1:18])


def test_digits_are_split_by_writing_run():
    digits = load_digits()
    source = sources.load("sklearn_digits")
    assert source.train.inputs.shape == (1415, 8, 8, 1)
    assert source.test.inputs.shape == (382, 8, 8, 1)
    both = np.concatenate([source.train.inputs, source.test.inputs])[..., 0]
    assert both.dtype == np.uint8
    np.testing.assert_array_equal(np.rint(both / 255 * 16), digits.images)
    np.testing.assert_array_equal(source.test.labels, digits.target[1415:])
    sizes = np.bincount(source.train.clients)
    assert sizes.tolist() == [130, 126, 130, 130, 130, 130, 130, 123, 128, 130, 128]
    assert np.unique(source.test.clients).tolist() == [11, 12, 13]
    assert source.train.class_names == tuple("0123456789")

    one = sources.load("sklearn_digits", test_blocks=1)
    assert len(one.test.labels) == 130
    early = sources.load("sklearn_digits", blocks=11, test_blocks=3)
    np.testing.assert_array_equal(early.train.inputs, source.train.inputs[:1029])
    np.testing.assert_array_equal(early.test.inputs, source.train.inputs[1029:])
    large = sources.load("sklearn_digits", image_size=16, channels=3)
    assert large.test.inputs.shape == (382, 16, 16, 3)
    np.testing.assert_array_equal(
        large.test.inputs[:, ::2, ::2, 1], source.test.inputs[..., 0]
    )
    assert large.mean == (0.5, 0.5, 0.5)
