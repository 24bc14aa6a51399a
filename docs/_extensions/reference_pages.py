"""Writes reference/: a page for each room of architecture.md, with all its modules.

Nothing is listed by hand: a new file of the library is in the reference.
"""

import pathlib
import re

from sphinx.application import Sphinx

# Room of architecture.md -> what it is called here, in the order of the reference.
_TITLES = {
    "face": "From Python",
    "federated learning": "Federated learning",
    "training": "Training and evaluation",
    "classifiers": "Classifiers",
    "data": "Data",
    "prompts": "Prompts",
    "pictures": "Generators: pictures",
    "speech": "Generators: speech",
    "sounds": "Generators: sounds",
    "text": "Generators: text",
    "diffusion": "Generators: diffusion",
    "generators": "Generators: shared",
    "released": "Released models and weights",
    "layers": "Layers",
    "planning": "Planning",
    "files": "Files",
    "choices": "Choices and rules",
    "start-up": "Start-up and configuration",
    "basis": "Basis",
    "stage 1": "Program: generate",
    "stage 2": "Program: train",
    "stage 3": "Program: federated",
}


def rooms(root: pathlib.Path) -> dict[str, list[str]]:
    """Room -> the prefixes of its modules' names, as docs/architecture.md has them."""
    page = (root / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Rooms")[2].partition("\n## ")[0]
    found = {}
    for line in table.splitlines():
        if line.startswith("| ") and not line.startswith(("| room", "| ---")):
            room, holds = line.strip("|").split("|")[:2]
            paths = re.findall(r"`([^`]+)`", holds)
            prefixes = [path.strip("/").removesuffix(".py") for path in paths]
            found[room.strip()] = [prefix.replace("/", ".") for prefix in prefixes]
    return found


def modules(root: pathlib.Path) -> list[str]:
    """The public modules of the library and of the programs."""
    found = []
    for folder in ("gptfl_jax", "generate", "train", "federated"):
        for path in sorted((root / folder).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            if not re.search(r"\._(?!_init__)|__main__", name):
                found.append(name.removesuffix(".__init__"))
    return sorted(found)


def pages(root: pathlib.Path) -> dict[str, str]:
    """Name of a page of reference/ -> its text."""
    by_room: dict[str, list[str]] = {}
    known = rooms(root)
    for module in modules(root):
        fits = [
            (len(prefix), room)
            for room, prefixes in known.items()
            for prefix in prefixes
            if f"{module}.".startswith(f"{prefix}.")
        ]
        if fits:  # all but the library itself, which is on the first page
            by_room.setdefault(max(fits)[1], []).append(module)
    order = [*_TITLES, *(room for room in by_room if room not in _TITLES)]
    result, index = {}, [_INDEX]
    for room in order:
        if room not in by_room:
            continue
        title, slug = _TITLES.get(room, room.capitalize()), room.replace(" ", "-")
        text = f"# {title}\n"
        result[slug] = text + "".join(map(_MODULE.format, by_room[room]))
        index.append(slug)
    result["index"] = "\n".join([*index, "```", ""])
    return result


# Docstrings are reStructuredText by the time that Sphinx reads them.
_MODULE = """
## {0}

```{{eval-rst}}
.. automodule:: {0}
```
"""

_INDEX = """\
# Reference

Every public name of the library and of the programs, from the docstrings. The rooms are
those of [the architecture](../architecture.md). Most notebooks need no more than
[From Python](face.md), whose names `import gptfl_jax as gf` has.

```{toctree}
:maxdepth: 1
"""


def write(app: Sphinx) -> None:
    """Writes what differs, so that a second build reads only that."""
    here = pathlib.Path(app.srcdir)
    folder = here / "reference"
    folder.mkdir(exist_ok=True)
    texts = pages(here.parent)
    for old in folder.glob("*.md"):
        if old.stem not in texts:
            old.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
