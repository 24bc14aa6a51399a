"""Tokenizers by byte pairs that have a token for each word of some prompts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32


def learn(
    words: Iterable[Sequence[str]],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Merges that build each word from its first letter on.

    Args:
        words: each as its letters, where the tokenizer's mark of the beginning or the
            end of a word is part of a letter.

    Returns:
        the merges by rank, and the tokens that they make, in the same order.
    """
    merges: list[tuple[str, str]] = []
    # A pair merged for an earlier word may change how a later one splits: start from
    # that split.
    for word in words:
        pieces = split(word, merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = split(word, merges)
    return merges, [first + second for first, second in merges]


def split(word: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[str]:
    """The pieces of a word, given as its letters, after merges in order of rank."""
    pieces = list(word)
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while pairs := [p for p in zip(pieces, pieces[1:]) if p in ranks]:  # noqa: B905
        pair = min(pairs, key=ranks.get)
        merged, i = [], 0
        while i < len(pieces):
            if tuple(pieces[i : i + 2]) == pair:
                merged.append("".join(pair))
                i += 2
            else:
                merged.append(pieces[i])
                i += 1
        pieces = merged
    return pieces


def token_table(
    tokenizer: Any, texts: Sequence[str], length: int
) -> Int32[np.ndarray, "prompts tokens"]:
    """Tokens of each text, and of the empty one as the last row."""
    encoded = tokenizer(
        [*texts, ""],
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="np",
    )
    return encoded["input_ids"].astype(np.int32)
