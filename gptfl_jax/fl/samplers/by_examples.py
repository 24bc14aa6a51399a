"""Cohorts in which clients with many examples are likelier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from gptfl_jax.fl.sampling import Sampler, cohort_by_examples


def by_examples(
    offsets: Int32[Array | np.ndarray, " clients_plus_1"], cohort_size: int
) -> Sampler:
    """By examples: different clients, in proportion to their examples.

    Goes with weighting "uniform". See `cohort_by_examples`.

    Raises:
        ValueError: fewer clients than `cohort_size` own examples.
    """
    owners = np.count_nonzero(np.diff(offsets))
    if owners < cohort_size:
        raise ValueError(
            f"only {owners} of {len(offsets) - 1} clients own examples, fewer than "
            f"config.federated.cohort_size = {cohort_size}: lower it"
        )
    return jax.jit(
        functools.partial(
            cohort_by_examples, offsets=jnp.asarray(offsets), size=cohort_size
        )
    )
