"""What is said of prompts before work starts: words that a model can make little of."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from gptfl_jax.generators.vocabulary import unknown_words
from gptfl_jax.progress import say

_SHOWN = 8


def warn(tokenizer: Any, prompts: Mapping[str, Sequence[str]]) -> None:
    """Says in one line which words a model does not know, or are bare numbers.

    Args:
        tokenizer: the model's.
        prompts: sentences by class.
    """
    found = [text for text in (_unknown(tokenizer, prompts), _numbers(prompts)) if text]
    if found:
        say(f"warning: {'; '.join(found)}", quiet=jax.process_index() > 0)


def _unknown(tokenizer: Any, prompts: Mapping[str, Sequence[str]]) -> str:
    words = {
        name: {w for text in texts for w in re.findall(r"[^\W_]+", text)}
        for name, texts in prompts.items()
    }
    unknown = set(unknown_words(tokenizer, sorted(set().union(*words.values()))))
    classes = [
        f"{', '.join(sorted(words[name] & unknown))} (class {name})"
        for name in prompts
        if words[name] & unknown
    ]
    if not classes:
        return ""
    return (
        f"the model's tokenizer knows no tokens for {_listed(classes)}: what is made "
        "of them may be anything; use other words, by config.prompts.template or the "
        "name of the class"
    )


def _numbers(prompts: Mapping[str, Sequence[str]]) -> str:
    bare = [
        name
        for name, texts in prompts.items()
        if re.fullmatch(r"\d+", name)
        and any(re.search(rf"(?<!\w){name}(?!\w)", text) for text in texts)
    ]
    if not bare:
        return ""
    return (
        f"prompts call classes by bare numbers, {_listed(bare)}: models make anything "
        "of these; name what they are by config.data.options.labels, or by the names "
        "of the class folders"
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
