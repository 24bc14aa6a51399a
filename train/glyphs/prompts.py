"""The sentences that describe pictures of digits, and the words they are made of."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

DIGIT_NAMES = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)

# The words a prompt may use, slot by slot. Index 0 leaves the slot open: the picture
# then shows any of the slot's values.
KINDS = ("", "handwritten", "printed", "pencil", "pen", "marker", "chalk")
WEIGHTS = ("", "thin", "medium", "thick")
SLANTS = ("", "upright", "slanted", "tilted")
BACKGROUNDS = ("", "dark", "light")
FRAMINGS = ("", "filling the frame", "small", "centered")

_SLOTS = (DIGIT_NAMES, KINDS, WEIGHTS, SLANTS, BACKGROUNDS, FRAMINGS)
_SLOT_SIZES = tuple(len(words) for words in _SLOTS)
# How often a prompt mentions the kind, weight, slant, background and framing.
_MENTIONED = (0.9, 0.7, 0.7, 0.8, 0.75)


class Attributes(NamedTuple):
    """What a prompt says: indices into the slots' words, 0 where it says nothing."""

    digit: Int[Array, "..."]
    kind: Int[Array, "..."]
    weight: Int[Array, "..."]
    slant: Int[Array, "..."]
    background: Int[Array, "..."]
    framing: Int[Array, "..."]


def prompt(
    digit: int,
    kind: str = "handwritten",
    weight: str = "",
    slant: str = "",
    background: str = "",
    framing: str = "",
) -> str:
    """The sentence for a digit and a look, in words of `KINDS`, `WEIGHTS`, ...

    >>> prompt(7, weight="thin", slant="slanted", background="dark")
    'a handwritten digit seven, thin slanted strokes on a dark background'
    """
    text = " ".join(f"a {kind} digit {DIGIT_NAMES[digit]}".split())
    strokes = f"{weight} {slant}".strip()
    if strokes:
        text += f", {strokes} strokes"
    if background:
        text += f" on a {background} background"
    if framing:
        text += f", {framing}"
    return text


def all_prompts() -> list[str]:
    """Every sentence `prompt` can make, in the order of `prompt_index`."""
    return [
        prompt(digit, *words)
        for digit, *words in itertools.product(range(10), *_SLOTS[1:])
    ]


def prompt_index(attributes: Attributes) -> Int[Array, "..."]:
    """The place of the attributes' sentence in `all_prompts()`."""
    index = attributes.digit
    for value, size in zip(attributes[1:], _SLOT_SIZES[1:], strict=True):
        index = index * size + value
    return index


def mention(key: PRNGKeyArray, shown: Attributes) -> Attributes:
    """Leaves slots open at random, as a prompt does; the digit is always named."""
    kept = jax.random.bernoulli(key, jnp.asarray(_MENTIONED))
    return Attributes(
        shown.digit,
        *(jnp.where(k, v, 0) for k, v in zip(kept, shown[1:], strict=True)),
    )
