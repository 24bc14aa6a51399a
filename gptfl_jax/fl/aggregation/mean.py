"""The weighted mean."""

import jax

from gptfl_jax.fl.sums import (
    Aggregation,
    accumulator,
    add_weighted,
    divisor,
    scale,
    weighting,
)


def mean(weight: str = "examples") -> Aggregation:
    """Mean: sum_i w_i d_i / sum_i w_i, as a running sum."""
    return Aggregation(
        weight=weighting(weight),
        init=lambda update, cohort: jax.tree.map(accumulator, update),
        add=lambda sums, updates, weights, positions: add_weighted(
            sums, updates, weights
        ),
        finish=lambda sums, weights, key: scale(sums, 1 / divisor(weights.sum())),
    )
