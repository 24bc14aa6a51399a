"""Where a convolution is traced: what its callers say of loops and of clients."""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import jax

Form = Literal[
    "lax",
    "direct",
    "patches",
    "product",
    "shifts",
    "row_split",
    "winograd",
    "winograd_strips",
]


# Values that `jax.jit` keeps apart: a function is traced anew for each.
asked_form = jax.make_user_context(None)

is_outside = jax.make_user_context(False)


is_side_by_side = jax.make_user_context(False)


@contextlib.contextmanager
def form(name: str) -> Iterator[None]:
    """Makes every `conv` traced inside the block use a form of `Form`, on any backend.

    For tests and measurements. A form that does not apply (all but "lax" and "patches"
    have conditions) gives way to "patches".

    Raises:
        ValueError: no such form.
    """
    if name not in get_args(Form):
        raise ValueError(f"form {name!r}: takes one of {', '.join(get_args(Form))}")
    with asked_form(name):
        yield


@contextlib.contextmanager
def outside_loops() -> Iterator[None]:
    """Says that no loop of XLA's runs what is traced inside the block.

    In a loop on a CPU, gradients would be 3 to 70 times slower than without this, and
    strided convolutions 1.7 times.
    """
    with is_outside(True):
        yield


def in_parts() -> bool:
    """Whether what is traced here is quicker in parts that fit a processor's cache: on
    a CPU, outside of loops."""
    return is_outside.value and jax.default_backend() == "cpu"


@contextlib.contextmanager
def side_by_side() -> Iterator[None]:
    """Says that `vmap` gives what is traced inside the block each client's kernels."""
    with is_side_by_side(True):
        yield
