"""Words that a text encoder cannot know: its tokenizer has no tokens for them."""

import re
from collections.abc import Iterable
from typing import Any

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def unknown_words(tokenizer: Any, words: Iterable[str]) -> list[str]:
    """The words with a character that a tokenizer does not know, or knows by its bytes.

    Args:
        tokenizer: of `transformers`.
        words: each of which is asked for alone.
    """
    words = list(words)
    if not words:
        return []
    unknown = getattr(tokenizer, "unk_token_id", None)
    rows = tokenizer(words, add_special_tokens=False).input_ids
    return [
        word
        for word, row in zip(words, rows, strict=True)
        if (unknown is not None and unknown in row)
        or (not word.isascii() and _in_bytes(tokenizer, row))
    ]


def _in_bytes(tokenizer: Any, row: list[int]) -> bool:
    """Whether a token is a part of a character, as tokenizers of bytes have them."""
    return any(
        _BYTE.fullmatch(str(token)) or "\ufffd" in tokenizer.decode([number])
        for token, number in zip(tokenizer.convert_ids_to_tokens(row), row, strict=True)
    )
