"""Prompts of each class by method, and the draws that turn prompts into samples.

The public functions of a `request` are the methods a config names in `prompts.method`:
each gives the sentences of every class, or, for those of `TEXT_MODELS`, what the text
model is given; `until_enough` says how long that is asked. What a text model or a file
gave is unclean, so `select` removes special tokens, duplicates, and sentences that do
not name their class. Methods and templates: GPT-FL (arXiv 2306.02210).
"""

import io
import json
import pathlib
import re
import reprlib
import string
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, Key, PRNGKeyArray

from gptfl_jax import labels, safe_pickle, user_files
from gptfl_jax.errors import UserError

# Unconditional guidance ("ucg") draws each sample's guidance scale from these.
UCG_GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0)

# Methods whose sentences a text model draws, and what it is given of a class.
TEXT_MODELS = {
    "commongen": "{name}",
    "chat": (
        "Fill in the blanks around the words to make one prompt for a text-to-image "
        'model: "_ _ _ _ {name} _ _ _ _". Keep the words as they are. Answer with the '
        "finished prompt and nothing else."
    ),
}

# One number for each kind of draw, folded into the run's key before the class.
_SENTENCE_DRAWS = zlib.crc32(b"sentences")
_PROMPT_DRAWS = zlib.crc32(b"prompts")
_SAMPLE_DRAWS = zlib.crc32(b"samples")

# Draws are made in blocks of this many samples: one compiled shape for any count.
_DRAW_BLOCK = 1024


class Request(NamedTuple):
    """What a method makes prompts of; the fields are those of `config.prompts`."""

    label_set: labels.LabelSet
    template: str = ""
    """Empty: the label set's own for the method."""
    domains: tuple[str, ...] = ()
    """Of multi_domain; empty: the label set's own."""
    imported_file: str = ""


def class_prompt(request: Request) -> dict[str, list[str]]:
    """The template filled in with the class: one prompt a class.

    Raises:
        UserError: the template takes something else than `{name}`, or there is none.
    """
    template = _template(request, "class_prompt", {"name"})
    names = request.label_set.phrases
    return {c: [template.format(name=names[c])] for c in request.label_set.classes}


def multi_domain(request: Request) -> dict[str, list[str]]:
    """The template filled in with the class and each domain in turn.

    Every domain is used; the original's `randint(0, len - 1)` never drew the last.

    Raises:
        UserError: the template does not take `{name}` and `{domain}`, or there is none,
            or there are no domains.
    """
    template = _template(request, "multi_domain", {"name", "domain"})
    domains = request.domains or request.label_set.domains
    if not domains:
        raise UserError("config.prompts.domains is empty: multi_domain needs domains")
    names = request.label_set.phrases
    return {
        c: [template.format(name=names[c], domain=domain) for domain in domains]
        for c in request.label_set.classes
    }


def multi_speaker(request: Request) -> dict[str, list[str]]:
    """`class_prompt`, for speech whose speaker is drawn among all.

    Every speaker can be drawn; the original's `randint(0, len - 1)` never drew the
    last.
    """
    template = _template(request, "multi_speaker", {"name"})
    return class_prompt(request._replace(template=template))


def ucg(request: Request) -> dict[str, list[str]]:
    """`class_prompt`, for samples whose guidance is drawn from `UCG_GUIDANCE`."""
    template = _template(request, "ucg", {"name"})
    return class_prompt(request._replace(template=template))


def imported(request: Request) -> dict[str, list[str]]:
    """The lists of a file, as the original's `cifar10_promptlist.pkl`.

    The file is a pickled dict or a JSON object of class name to list of sentences, or a
    `prompts.json` of another workdir. Its names need not be spelled as the data set's
    classes: case, a leading article, `_` and spaces do not count ("an Airplane" is
    "airplane"). Nothing in a pickle is executed.

    Raises:
        UserError: the file cannot be read or holds something else, or a class has none
            of its lists or several.
    """
    lists = read_prompt_lists(pathlib.Path(request.imported_file))
    result = {}
    for name in request.label_set.classes:
        phrase = request.label_set.phrases[name]
        found = [
            key
            for key in lists
            if labels.same_name(key, name) or labels.same_name(key, phrase)
        ]
        if len(found) != 1:
            holds = ", ".join(key[:80] for key in found or list(lists)[:12])
            raise UserError(
                f"config.prompts.imported_file = {request.imported_file!r}: holds "
                f"{'more than one' if found else 'no'} list for class {name!r}, "
                f"but {holds}{' ...' if not found and len(lists) > 12 else ''}"
            )
        result[name] = lists[found[0]]
    return result


def commongen(request: Request) -> dict[str, str]:
    """What a T5 is given of each class, to draw sentences around it.

    Raises:
        UserError: the template takes something else than `{name}`.
    """
    return _model_inputs(request, "commongen")


def chat(request: Request) -> dict[str, str]:
    """What a chat model is asked for each class, sentence by sentence.

    Raises:
        UserError: the template takes something else than `{name}`.
    """
    return _model_inputs(request, "chat")


def _model_inputs(request: Request, method: str) -> dict[str, str]:
    request = request._replace(template=request.template or TEXT_MODELS[method])
    template = _template(request, method, {"name"})
    names = request.label_set.phrases
    return {c: template.format(name=names[c]) for c in request.label_set.classes}


def until_enough(
    draw: Callable[[int], Sequence[str]], names: Sequence[str], count: int, most: int
) -> list[str]:
    """Sentences of a class, drawn until `count` different ones name it.

    Args:
        draw: gives the next sentences, at least one, when told how many there are.
        names: of the class.
        count: sentences that `select` is to keep.
        most: draws after which the class is given up.

    Returns:
        all that was drawn, in order; the last completes `count`, unless there are
            `most`.
    """
    called = _as_cleaned(names)
    drawn: list[str] = []
    kept: set[str] = set()
    while len(drawn) < most:
        for raw in draw(len(drawn))[: most - len(drawn)]:
            drawn.append(raw)
            sentence = clean(raw)
            if labels.names_class(sentence, *called):
                kept.add(sentence.casefold())
            if len(kept) == count:
                return drawn
    return drawn


def sentence_keys(
    key: PRNGKeyArray, class_name: str, numbers: Sequence[int]
) -> Key[Array, " sentences"]:
    """Keys of a class's sentences with these numbers.

    Each is `fold_in(key, sentences, class, number)` and depends on nothing else.
    """
    class_key = _class_key(key, _SENTENCE_DRAWS, class_name)
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    return fold(class_key, jnp.asarray(list(numbers)))


def _template(request: Request, method: str, takes: set[str]) -> str:
    template = request.template or request.label_set.templates.get(method, "")
    wanted = " and ".join(f"{{{field}}}" for field in sorted(takes, reverse=True))
    if not template:
        raise UserError(
            f"config.prompts.template is empty, and none is known for {method} of "
            f"{request.label_set.name}: give a sentence with {wanted}"
        )
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template)]
    except ValueError:
        fields = [""]
    if {field for field in fields if field is not None} != takes:
        raise UserError(
            f"config.prompts.template = {template!r}: takes a sentence with {wanted} "
            f"for method {method}, and nothing else in braces"
        )
    return template


# A hundred times the longest lists of the paper; JSON takes up to 20 times its size.
_MOST_BYTES = 2**25


def read_prompt_lists(path: pathlib.Path) -> dict[str, list[str]]:
    """Reads class name to sentences from a pickle or JSON, executing nothing.

    Raises:
        UserError: the file cannot be read, is no such pickle or JSON, or names anything
            to import (which a pickle of plain lists never does).
    """

    def refused(reason: str) -> user_files.Unreadable:
        remedy = "name a pickled dict or JSON object of class name to list of sentences"
        return user_files.Unreadable(path, reason, remedy)

    content = user_files.read_bytes(path, _MOST_BYTES)
    try:
        if content.lstrip()[:1] == b"{":
            lists = json.loads(content)
            if isinstance(lists.get("prompts"), dict):
                lists = lists["prompts"]
        else:
            lists = safe_pickle.load(io.BytesIO(content))
    except (ValueError, RecursionError) as error:
        raise refused(f"cannot be read ({user_files.brief(error)})") from error
    if not isinstance(lists, dict) or not lists:
        raise refused(f"holds {type(lists).__name__}, or nothing")
    if sum(_length(sentences) for sentences in lists.values()) > len(content):
        raise refused("holds one list several times")
    for name, sentences in lists.items():
        if not _is_text(name) or not isinstance(sentences, list | tuple):
            raise refused(f"{reprlib.repr(name)} has no list of sentences")
        if not all(map(_is_text, sentences)):
            raise refused(
                f"the list of {reprlib.repr(name)} holds something else than text"
            )
    return {name: list(sentences) for name, sentences in lists.items()}


def _length(value: object) -> int:
    return len(value) if isinstance(value, list | tuple) else 0


def _is_text(value: object) -> bool:
    """Whether something is text that can be written: halves of pairs cannot."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


class Selection(NamedTuple):
    """The sentences kept of one class, in their order, and how many were dropped."""

    kept: tuple[str, ...]
    cleaned: int
    """Kept or not, held a special token or loose spaces."""
    without_class: int
    duplicates: int
    over_limit: int


# What tokenizers put between sentences and decoders forget to skip.
_SPECIAL_TOKENS = re.compile(
    r"<(?:extra_id_\d+|pad|unk|mask|bos|eos|s|/s)>"
    r"|<\|[A-Za-z_]+\|>|\[(?:CLS|SEP|PAD|UNK|MASK)\]"
)


def clean(sentence: str) -> str:
    """Removes special tokens (`<extra_id_20>`, `<pad>`, `</s>`) and loose spaces."""
    words = " ".join(_SPECIAL_TOKENS.sub(" ", sentence).split())
    return re.sub(r" (?=[.,;:!?](?: |$))", "", words)


def _as_cleaned(names: Sequence[str]) -> tuple[str, ...]:
    """Names as they are written, and as they stand in a cleaned sentence."""
    return tuple(dict.fromkeys((*names, *filter(None, map(clean, names)))))


def select(
    sentences: Sequence[str],
    names: Sequence[str],
    key: PRNGKeyArray,
    most: int = 0,
) -> Selection:
    """Cleans the sentences of one class and drops those that are of no use.

    Args:
        names: of the class; a sentence without any of them is dropped
            (`labels.names_class`).
        key: what the run draws from, the same for all classes.
        most: sentences to keep, drawn without replacement; 0 keeps all.

    Sentences that differ in case or spaces alone are duplicates: text encoders of
    Stable Diffusion cannot tell them apart.
    """
    called = _as_cleaned(names)
    kept: dict[str, str] = {}
    cleaned = without_class = duplicates = 0
    for raw in sentences:
        sentence = clean(raw)
        cleaned += sentence != raw
        if not labels.names_class(sentence, *called):
            without_class += 1
        elif sentence.casefold() in kept:
            duplicates += 1
        else:
            kept[sentence.casefold()] = sentence
    chosen = list(kept.values())
    if 0 < most < len(chosen):
        rows = jax.random.permutation(
            _class_key(key, _PROMPT_DRAWS, names[0]), len(chosen)
        )
        chosen = [chosen[row] for row in sorted(np.asarray(rows[:most]).tolist())]
    over_limit = len(kept) - len(chosen)
    return Selection(tuple(chosen), cleaned, without_class, duplicates, over_limit)


class Draws(NamedTuple):
    """What is drawn for samples of one class."""

    prompt: Int32[np.ndarray, " samples"]
    """Index into the class's prompts."""
    choice: Int32[np.ndarray, " samples"]
    """Index into what to choose from: guidance scales of images, speakers of speech."""
    seed: Int32[np.ndarray, " samples"]
    """`jax.random.key(seed)` is the key the generator draws the sample from."""


def draw(
    key: PRNGKeyArray,
    class_name: str,
    count: int,
    num_prompts: int,
    num_choices: int,
) -> Draws:
    """Draws prompt, choice and seed of samples 0..count-1 of a class.

    All draws of a sample start from `fold_in(key, samples, class, index)`, so they
    depend on nothing else: not on the count, the other classes, or who makes it.
    """
    class_key = _class_key(key, _SAMPLE_DRAWS, class_name)
    blocks = [
        _draw_block(class_key, jnp.int32(start), num_prompts, num_choices)
        for start in range(0, count, _DRAW_BLOCK)
    ]
    columns = zip(*blocks, strict=True)
    return Draws(*(np.concatenate(parts)[:count] for parts in columns))


@jax.jit
def _draw_block(class_key, start, num_prompts, num_choices):
    def one(index):
        keys = jax.random.split(jax.random.fold_in(class_key, index), 3)
        return (
            jax.random.randint(keys[0], (), 0, num_prompts),
            jax.random.randint(keys[1], (), 0, num_choices),
            (jax.random.bits(keys[2]) >> 1).astype(jnp.int32),
        )

    return jax.vmap(one)(start + jnp.arange(_DRAW_BLOCK))


def _class_key(key: PRNGKeyArray, draws: int, class_name: str) -> PRNGKeyArray:
    """A class is known by its name, so that adding a class changes no other's draws."""
    number = zlib.crc32(class_name.encode())
    key = jax.random.fold_in(key, np.uint32(draws))
    return jax.random.fold_in(key, np.uint32(number))
