"""The sentences that describe strokes of drums, and the words they are made of."""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from gptfl_jax import labels

LABELS = labels.label_set("drumkits")

# The words a prompt may use, slot by slot. Index 0 leaves the slot open: the stroke is
# then any of the slot's.
BRIGHTNESS = ("", "bright", "dark")
LENGTHS = ("", "short", "long")
KINDS = ("", "acoustic", "electronic")

_SLOTS = (LABELS.classes, BRIGHTNESS, LENGTHS, KINDS)
# How often a prompt mentions the brightness, length and kind.
_MENTIONED = (0.6, 0.6, 0.6)


def prompt(name: str, brightness: str = "", length: str = "", kind: str = "") -> str:
    """The sentence for a stroke of a class, in words of `BRIGHTNESS`, ...

    >>> prompt("hi_hat", "bright", kind="acoustic")
    'bright acoustic hi-hat'
    """
    return " ".join(f"{brightness} {length} {kind} {LABELS.phrases[name]}".split())


def all_prompts() -> list[str]:
    """Every sentence `prompt` can make, in the order of `prompt_index`."""
    return [prompt(*words) for words in itertools.product(*_SLOTS)]


def prompt_index(attributes: Int[Array, "*batch 4"]) -> Int[Array, "*batch"]:
    """The place of the attributes' sentence in `all_prompts()`.

    Args:
        attributes: class, brightness, length, kind, as indices into their words.
    """
    index = attributes[..., 0]
    for slot, words in enumerate(_SLOTS[1:], 1):
        index = index * len(words) + attributes[..., slot]
    return index


def mention(
    key: PRNGKeyArray, attributes: Int[Array, "*batch 4"]
) -> Int[Array, "*batch 4"]:
    """Leaves slots open at random, as a prompt does; the class is always named."""
    shape = (*attributes.shape[:-1], len(_MENTIONED))
    kept = jax.random.bernoulli(key, jnp.asarray(_MENTIONED), shape)
    return attributes.at[..., 1:].multiply(kept.astype(attributes.dtype))
