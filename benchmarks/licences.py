"""docs/licences.md: the packages that an install brings, and their licences.

    make licences

in an environment with the extras to list. What a package says of itself in its metadata
is shown; nothing is judged.
"""

import pathlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import document

PAGE = pathlib.Path("docs/licences.md")
# Those for users; the tests' and the site's tools are nobody's dependency.
_EXTRAS = ("tfds", "parquet", "tensorboard", "wandb", "trackio", "features")
_INTRODUCTION = """\
# Licences

gptfl-jax is under the Apache License 2.0, and so are the small generators that it
ships: each folder of `gptfl_jax/assets/` has a model card. Weights and data sets that a
config names come from others, under licences of their own.

Below are the packages that `pip install gptfl-jax` brings, with those that they need
themselves, and then what each extra adds. A licence is what the package's own metadata
say. Written by `make licences`."""
_OF_CLASSIFIER = "License :: OSI Approved :: "
# What is longer is the text of a licence, not its name.
_LONGEST_NAME = 40


def licence(of: Mapping[str, str], classifiers: Iterable[str] = ()) -> str:
    """The licence that metadata name: an expression, a short text, or classifiers."""
    if expression := of.get("License-Expression"):
        return expression
    named = [
        c.removeprefix(_OF_CLASSIFIER)
        for c in classifiers
        if c.startswith(_OF_CLASSIFIER)
    ]
    text = (of.get("License") or "").strip()
    if text and text != "UNKNOWN" and len(text) <= _LONGEST_NAME and "\n" not in text:
        return text
    return ", ".join(named) or "not said"


def needed(requirements: Iterable[str]) -> dict[str, str]:
    """Package -> licence of all that requirements bring here.

    Those that are not installed are left out, with what only they need.
    """
    found: dict[str, str] = {}
    to_see = [Requirement(line) for line in requirements]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while to_see:
        requirement = to_see.pop()
        name, extras = requirement.name, ("", *sorted(requirement.extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        name = canonicalize_name(name)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        about = distribution.metadata
        found[name] = licence(about, about.get_all("Classifier") or ())
        more = [Requirement(line) for line in distribution.requires or ()]
        to_see += [
            each
            for each in more
            if each.marker is None
            or any(each.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return dict(sorted(found.items()))


def page() -> str:
    """The page in Markdown."""
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
    base = needed(project["dependencies"])
    parts = [_INTRODUCTION, _table(base)]
    for extra in _EXTRAS:
        added = needed(project["optional-dependencies"][extra])
        added = {name: value for name, value in added.items() if name not in base}
        nothing = "Not installed where this was written, or nothing more."
        parts += [f"## Extra {extra}", _table(added) if added else nothing]
    return "\n\n".join(parts) + "\n"


def _table(found: Mapping[str, str]) -> str:
    lines = [(name, re.sub(r"\s+", " ", value)) for name, value in found.items()]
    return document.table(("package", "licence"), lines, texts=2)


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
