"""Which clients take part in a round, and in which order a client sees its examples.

Both rest on `shuffled`, a keyed permutation of 0..n-1 that is evaluated point by point:
k members of a random order of n things cost O(k) work and memory. So a cohort of 100
costs the same from a thousand clients as from a million, and a batch needs no shuffled
list of its client's examples. Everything is a pure function of its key and compiles.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, UInt32

# Feistel rounds of a permutation, as in the paper. Few things need the most: the 120
# orders of 5 things had, over 200,000 keys, a chi-square of 432 after 12 rounds (119
# expected).
_ROUNDS = 24


class Shuffle(NamedTuple):
    """A random order of 0..n-1, for any n, drawn with a key."""

    words: UInt32[Array, "rounds 2"]

    @classmethod
    def draw(cls, key: PRNGKeyArray) -> "Shuffle":
        """One threefry call."""
        return cls(jax.random.bits(key, (_ROUNDS, 2), jnp.uint32))

    def __call__(
        self, positions: Int[Array, "..."], n: Int[Array, ""] | int
    ) -> Int32[Array, "..."]:
        """As `shuffled`."""
        return _evaluate(self.words, jnp.asarray(positions), jnp.asarray(n))


# Compiled by itself, because outside of jit a loop is compiled again at every call.
@jax.jit
def _evaluate(words, positions, n):
    n = jnp.maximum(n, 1).astype(jnp.uint32)
    # Rounding in the square root does no harm: for any a, b makes a * b >= n.
    a = jnp.ceil(jnp.sqrt(n.astype(jnp.float32))).astype(jnp.uint32)
    b = (n + a - 1) // a

    def two_rounds(i, halves):
        left, right = halves
        left = (left + _mix(right, words[2 * i]) % a) % a
        right = (right + _mix(left, words[2 * i + 1]) % b) % b
        return left, right

    def all_rounds(unroll, *halves):
        return lax.fori_loop(0, _ROUNDS // 2, two_rounds, halves, unroll=unroll)

    def bijection(x):
        # A CPU compiles a loop faster and does not run it slower; a GPU would launch
        # kernels for each of its steps.
        left, right = lax.platform_dependent(
            *(x // b, x % b),
            cpu=functools.partial(all_rounds, False),
            default=functools.partial(all_rounds, True),
        )
        return left * b + right

    def outside(carry):
        first, x = carry
        return first | jnp.any(x >= n)

    def walk(carry):
        first, x = carry
        return jnp.zeros((), bool), jnp.where(first | (x >= n), bijection(x), x)

    start = jnp.minimum(jnp.clip(positions, 0).astype(jnp.uint32), n - 1)
    # One loop for the first step as well: the bijection is compiled once.
    image = lax.while_loop(outside, walk, (jnp.ones((), bool), start))[1]
    return image.astype(jnp.int32)


def shuffled(
    key: PRNGKeyArray, positions: Int[Array, "..."], n: Int[Array, ""] | int
) -> Int32[Array, "..."]:
    """Which of 0..n-1 stand at `positions` of a random order of them.

    The order is `shuffled(key, jnp.arange(n), n)`, a permutation; any part of it can be
    had alone. `n` may be traced. Positions outside 0..n-1 give a valid but meaningless
    index, and so does n = 0 (always 0).

    Bandwidth-Optimal Random Shuffling for GPUs (arXiv 2106.06161): a Feistel network,
    which is a bijection whatever its round function, on a domain just above n, applied
    again where it leaves 0..n-1 (cycle walking). Unlike there the domain is a x b with
    a = ceil(sqrt(n)), b = ceil(n / a) and addition modulo a and b, not a power of two:
    it exceeds n by less than sqrt(n), so that walks are rare and short.
    """
    return Shuffle.draw(key)(positions, n)


def _mix(x: UInt32[Array, "..."], words: UInt32[Array, "2"]) -> UInt32[Array, "..."]:
    # The finalizer of MurmurHash3, with one key word before and one inside.
    x = (x + words[0]) * jnp.uint32(0x85EBCA6B)
    x = ((x ^ (x >> 15)) + words[1]) * jnp.uint32(0xC2B2AE35)
    x = x ^ (x >> 13)
    return x ^ (x >> 16)


def cohort(
    key: PRNGKeyArray, round: Int[Array, ""] | int, num_clients: int, size: int
) -> Int32[Array, " {size}"]:
    """`size` different clients of 0..num_clients-1, uniformly, in random order.

    A function of the key and the round alone, so that a resumed run draws what an
    uninterrupted one draws. O(size) whatever the population.

    Raises:
        ValueError: a cohort of none, or larger than the population.
    """
    _check_size(size, num_clients, "clients")
    key = jax.random.fold_in(key, round)
    return _distinct(key, num_clients, size)


def cohort_with_replacement(
    key: PRNGKeyArray, round: Int[Array, ""] | int, num_clients: int, size: int
) -> Int32[Array, " {size}"]:
    """`size` independent uniform draws: a client may come twice.

    What the original GPT-FL does. A client that comes twice trains twice, with its
    examples in two orders.
    """
    if num_clients < 1 or size < 1:
        raise ValueError(f"cannot draw {size} of {num_clients} clients")
    key = jax.random.fold_in(key, round)
    return jax.random.randint(key, (size,), 0, num_clients, jnp.int32)


def cohort_by_examples(
    key: PRNGKeyArray,
    round: Int[Array, ""] | int,
    offsets: Int32[Array, " clients_plus_1"],
    size: int,
    replace: bool = False,
) -> Int32[Array, " {size}"]:
    """`size` clients, each draw in proportion to the examples a client owns.

    The owner of a uniformly drawn example, found by bisection: O(log clients) a draw.
    Without replacement, owners drawn before are drawn again (successive sampling), so
    that the expected number of draws grows when few clients own nearly everything.
    Combine with weighting "uniform": by examples, size would count twice.

    Args:
        offsets: of `FederatedData`; at least `size` clients must own examples.
    """
    key = jax.random.fold_in(key, round)
    total = offsets[-1]

    def draw(key: PRNGKeyArray) -> Int32[Array, ""]:
        row = jax.random.randint(key, (), 0, total, jnp.int32)
        # side="right" steps over clients without examples.
        return (jnp.searchsorted(offsets, row, side="right") - 1).astype(jnp.int32)

    if replace:
        return jax.vmap(draw)(jax.random.split(key, size))
    _check_size(size, offsets.shape[0] - 1, "clients")

    def add(i, chosen):
        def again(carry):
            return jnp.any(chosen == carry[0])

        def redraw(carry):
            _, attempt = carry
            drawn = draw(jax.random.fold_in(jax.random.fold_in(key, i), attempt))
            return drawn, attempt + 1

        first = redraw((jnp.int32(-1), jnp.int32(0)))
        return chosen.at[i].set(lax.while_loop(again, redraw, first)[0])

    return lax.fori_loop(0, size, add, jnp.full((size,), -1, jnp.int32))


def cohort_of_available(
    key: PRNGKeyArray,
    round: Int[Array, ""] | int,
    available: Int32[Array, " available"],
    size: int,
) -> Int32[Array, " {size}"]:
    """`size` different clients of those listed, uniformly: one round of a trace.

    Raises:
        ValueError: fewer clients available than asked for.
    """
    _check_size(size, available.shape[0], "available clients")
    key = jax.random.fold_in(key, round)
    return available[_distinct(key, available.shape[0], size)]


@runtime_checkable
class Sampler(Protocol):
    """Draws the cohorts of a run."""

    def __call__(
        self, key: PRNGKeyArray, round: int, /
    ) -> Int32[Array, " cohort_size"]:
        """The cohort of the round after so many, a function of key and round alone."""


def may_repeat(make: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function that makes samplers: a client may be in a cohort twice.

    Such a cohort may be larger than the number of clients.
    """
    make.may_repeat = True
    return make


def reports(
    key: PRNGKeyArray,
    cohort: Int32[Array, " cohort"],
    dropout: Float[Array, ""] | float,
) -> Bool[Array, " cohort"]:
    """Which clients of a cohort send their update back: each fails with `dropout`."""
    keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(cohort)
    return jax.vmap(jax.random.uniform)(keys) >= dropout


def _distinct(key: PRNGKeyArray, n: int, size: int) -> Int32[Array, " {size}"]:
    return shuffled(key, jnp.arange(size), n)


def _check_size(size: int, available: int, what: str) -> None:
    if not 1 <= size <= available:
        raise ValueError(
            f"a cohort of {size} cannot be drawn without replacement from {available} "
            f"{what}: take 1 to {available}"
        )
