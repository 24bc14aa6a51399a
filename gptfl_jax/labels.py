"""Class names of the known data sets, how prompts name them, and sentence matching.

What is known of a data set is data: `label_sets/<name>.json` holds its class names in
the order of their labels (`classes`), how a prompt calls those whose label is not the
words to use (`phrases`), and the template of each prompt method that makes sense for
it (`templates`, `domains`). The names are those of the data sets' releases; templates
and domains of CIFAR-10, Flowers102, Food101, COVID radiography, EuroSAT, Speech
Commands and ESC-50 are those of GPT-FL (arXiv 2306.02210).
"""

import functools
import importlib.resources
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

from gptfl_jax import rules
from gptfl_jax.errors import UserError

# For class names of which nothing is known: pictures of things.
GENERIC_TEMPLATES = {
    "class_prompt": "a photo of {name}",
    "multi_domain": "a {domain} of {name}",
    "ucg": "a photo of {name}",
}
GENERIC_DOMAINS = (
    *("photo", "drawing", "painting", "sketch", "collage", "poster"),
    *("digital art image", "rock drawing", "stick figure", "3D rendering"),
)


class LabelSet(NamedTuple):
    """The classes of a data set and what prompts say about them."""

    name: str
    """Of the data set; empty for a list of class names."""
    classes: tuple[str, ...]
    """As the data set spells them, in the order of their labels."""
    phrases: Mapping[str, str]
    """Class name to the words a prompt uses for it, an article included."""
    templates: Mapping[str, str]
    """Prompt method to a sentence with `{name}` and, for multi_domain, `{domain}`."""
    domains: tuple[str, ...] = ()


def known_data_sets() -> tuple[str, ...]:
    """Names of the data sets whose classes and templates ship with the package."""
    files = (importlib.resources.files("gptfl_jax") / "label_sets").iterdir()
    return tuple(
        sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))
    )


KnownLabels = Annotated[
    str,
    rules.Rule(
        f"one of {', '.join(known_data_sets())}, or nothing",
        lambda value: value in ("", *known_data_sets()),
    ),
]
"""The name of a known data set, or nothing, as an option takes it."""


@functools.cache
def label_set(name: str) -> LabelSet:
    """The label set of a known data set.

    Raises:
        UserError: nothing is known of it.
    """
    if name not in known_data_sets():
        raise UserError(
            f"no class names are known of a data set {name!r} (known: "
            f"{', '.join(known_data_sets())}); list them in config.prompts.classes"
        )
    path = importlib.resources.files("gptfl_jax") / "label_sets" / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    classes = tuple(content["classes"])
    phrases = {c: content.get("phrases", {}).get(c, spoken(c)) for c in classes}
    domains = tuple(content.get("domains", ()))
    return LabelSet(name, classes, phrases, content["templates"], domains)


def label_set_of(classes: Sequence[str], data_set: str = "") -> LabelSet:
    """The label set of a list of class names.

    Where all of them are classes of the known data set `data_set`, its phrases,
    templates and domains apply; else the generic ones for pictures.

    Raises:
        UserError: there is no class, one is named twice, or has characters that cannot
            be written or shown.
    """
    if not classes:
        raise UserError("config.prompts.classes: there is no class name")
    for name in classes:
        require_text(name)
    twice = sorted({c for c in classes if list(classes).count(c) > 1})
    if twice:
        raise UserError(f"config.prompts.classes names {', '.join(twice)} twice")
    if data_set in known_data_sets():
        known = label_set(data_set)
        if set(classes) <= set(known.classes):
            phrases = {c: known.phrases[c] for c in classes}
            return known._replace(classes=tuple(classes), phrases=phrases)
    phrases = {c: spoken(c) for c in classes}
    return LabelSet("", tuple(classes), phrases, GENERIC_TEMPLATES, GENERIC_DOMAINS)


def require_text(class_name: str) -> None:
    """Makes sure that a class name can stand in files and on a terminal.

    Raises:
        UserError: it has control characters, or bytes that are no UTF-8, as a folder's
            name may.
    """
    shown = class_name.encode(errors="surrogateescape").decode(errors="replace")
    controls = [c for c in shown if unicodedata.category(c) == "Cc"]
    if shown != class_name or controls or not class_name.strip():
        raise UserError(
            f"class name {ascii(class_name)}: takes words in UTF-8 without control "
            "characters; rename the folder or the class"
        )


def spoken(class_name: str) -> str:
    """A label as words: `apple_pie` is "apple pie", `AnnualCrop` is "Annual Crop"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", class_name.replace("_", " "))
    return " ".join(words.split())


def same_name(first: str, second: str) -> bool:
    """Whether two labels are one, but for case, articles, `_`, `-` and spaces.

    "an Airplane" and "airplane" are; "hot_dog" and "Hotdog" are; "cat" and "car"
    are not.
    """
    return _bare(first) == _bare(second)


@functools.lru_cache(maxsize=4096)
def _bare(label: str) -> str:
    return "".join(_without_article(_words(spoken(label)))) or label


def _without_article(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def names_class(sentence: str, *labels: str) -> bool:
    """Whether a sentence contains one of `labels` as words of its own.

    Matching is by whole words without regard to case and accents: "cat" is not in
    "catalog", and "blackbird" is no "bird". Each word may stand in the singular or the
    plural ("two airplanes", "a bird of paradise" for "birds of paradise"). The words
    of a label with several may be joined by spaces, hyphens, or nothing ("hot dog",
    "hot-dog", "hotdog"). A leading article of a label does not count, and "a Sea or
    Lake" is named by either.
    """
    text = _plain(sentence)
    return any(pattern.search(text) for label in labels for pattern in _patterns(label))


@functools.lru_cache(maxsize=4096)
def _patterns(label: str) -> tuple[re.Pattern, ...]:
    wanted = [re.escape(_plain(spoken(label)))]  # also what has no words, as "C++"
    for part in re.split(r"\s+or\s+", spoken(label)):
        words = _without_article(_words(part))
        if words:
            inflected = ["|".join(map(re.escape, _forms(word))) for word in words]
            # A sentence's end or a comma does not join words.
            wanted.append(
                r"(?:[^\w.,;:!?]|_)*".join(f"(?:{forms})" for forms in inflected)
            )
    return tuple(re.compile(rf"(?<![^\W_])(?:{form})(?![^\W_])") for form in wanted)


def _plain(text: str) -> str:
    """Case-folded, without accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold().replace("’", "'"))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:'[^\W_]+)*", _plain(text))


# Plurals that no rule gives; a word ending in one of these ("fireman") follows it.
_IRREGULAR = {
    **{"man": "men", "woman": "women", "child": "children", "person": "people"},
    **{"mouse": "mice", "louse": "lice", "goose": "geese", "ox": "oxen"},
    **{"foot": "feet", "tooth": "teeth", "cactus": "cacti", "octopus": "octopi"},
    **{"fungus": "fungi", "die": "dice", "leaf": "leaves", "wolf": "wolves"},
    **{"calf": "calves", "shelf": "shelves", "knife": "knives", "loaf": "loaves"},
    **{"half": "halves", "elf": "elves", "thief": "thieves", "wife": "wives"},
    **{"life": "lives", "scarf": "scarves", "hoof": "hooves"},
}


def _forms(word: str) -> list[str]:
    """A word with its plurals and, where it looks like a plural, its singulars."""
    forms = {word, f"{word}s"}
    if re.search(r"(?:s|x|z|ch|sh|o)$", word):
        forms.add(f"{word}es")
    if re.search(r"[^aeiou]y$", word):
        forms.add(f"{word[:-1]}ies")
    if re.search(r"[^aeiou]ies$", word):
        forms.add(f"{word[:-3]}y")
    if re.search(r"(?:s|x|z|ch|sh|o)es$", word):
        forms.add(word[:-2])
    if re.search(r"[^sui]s$", word) and len(word) > 3:
        forms.add(word[:-1])
    for singular, plural in _IRREGULAR.items():
        # "man" also ends "fireman", but "ox" only looks like the end of "fox".
        compound = singular in ("man", "woman", "child", "person", "foot", "tooth")
        for one, other in ((singular, plural), (plural, singular)):
            if word == one or (compound and word.endswith(one)):
                forms.add(word.removesuffix(one) + other)
    return sorted(forms)
