"""The handwritten digits that come with scikit-learn."""

import numpy as np

from gptfl_jax.data.datasets import Dataset, Source
from gptfl_jax.errors import UserError

# The digits of scikit-learn (the test part of UCI's optdigits) come from one form of
# 130 digits that was copied 14 times, run after run; a few digits are missing.
BLOCKS = (
    *(0, 130, 256, 386, 516, 646, 776),
    *(906, 1029, 1157, 1287, 1415, 1545, 1667),
)
"""First example of each writing run; found by the repeating sequence of labels."""


def sklearn_digits(*, test_blocks: int = 3, blocks: int = len(BLOCKS)) -> Source:
    """1,797 real handwritten digits, 8x8 grey; comes with scikit-learn.

    The natural clients are the 14 runs in which they were written (`BLOCKS`).
    The test set is the last `test_blocks` runs, hence of hands not seen in training.
    Pixels count ink in 4x4 blocks, 0..16, here scaled to 0..255 (ink is bright).

    Args:
        test_blocks: runs in the test set.
        blocks: the first so many runs make up the data set. Hyperparameters can be
            chosen on the training writers alone with `blocks=11`: the last of these 11
            then are the test set, and the real test set is not looked at.
    """
    from sklearn.datasets import load_digits  # slow to import

    if not 2 <= blocks <= len(BLOCKS):
        raise UserError(
            f"config.data.options.blocks = {blocks}: takes a whole number from 2 to "
            f"{len(BLOCKS)}"
        )
    if not 0 < test_blocks < blocks:
        raise UserError(
            f"config.data.options.test_blocks = {test_blocks}: takes a whole number "
            f"from 1 to {blocks - 1}"
        )
    digits = load_digits()
    starts = (*BLOCKS, len(digits.target))
    inputs = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    block = np.searchsorted(BLOCKS, np.arange(len(labels)), side="right") - 1
    block = block.astype(np.int32)
    names = tuple(str(digit) for digit in range(10))
    split, end = starts[blocks - test_blocks], starts[blocks]
    train, test = (
        Dataset(inputs[rows], labels[rows], names, block[rows])
        for rows in (slice(split), slice(split, end))
    )
    return Source(train, test, mean=(0.5,), std=(0.5,))
