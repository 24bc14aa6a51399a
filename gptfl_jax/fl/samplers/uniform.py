"""Cohorts in which each client is as likely."""

import functools

import jax

from gptfl_jax.fl.sampling import Sampler, cohort, cohort_with_replacement, may_repeat


def uniform(num_clients: int, cohort_size: int) -> Sampler:
    """Uniform: different clients, each as likely. See `cohort`."""
    return jax.jit(functools.partial(cohort, num_clients=num_clients, size=cohort_size))


@may_repeat
def with_replacement(num_clients: int, cohort_size: int) -> Sampler:
    """With replacement: a client may come twice. See `cohort_with_replacement`."""
    return jax.jit(
        functools.partial(
            cohort_with_replacement, num_clients=num_clients, size=cohort_size
        )
    )
