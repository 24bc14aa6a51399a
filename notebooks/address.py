"""Writes where the repository lies into all that leads there.

    python -m notebooks.address you/gptfl-jax

Until it has an address, `OWNER/gptfl-jax` stands in its place, in `pyproject.toml`
(`tool.gptfl-jax.repository`), which is where it is read, and in the badges and install
cells of the notebooks, which can read nothing.
"""

import pathlib
import re
import sys
import tomllib

_ROOT = pathlib.Path(__file__).parent.parent
_SHAPE = re.compile(r"[\w-]+/[\w.-]+")


def address(root: pathlib.Path = _ROOT) -> str:
    """The owner and name of the repository on GitHub."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return project["tool"]["gptfl-jax"]["repository"]


def files(root: pathlib.Path = _ROOT) -> list[pathlib.Path]:
    """Those that name it."""
    notebooks = root / "notebooks"
    made = [*notebooks.glob("*.md"), *notebooks.glob("*.ipynb")]
    return [root / "pyproject.toml", *sorted(made)]


def change(new: str, root: pathlib.Path = _ROOT) -> None:
    """Puts another address in the place of the present one.

    Raises:
        ValueError: it is none.
    """
    if not _SHAPE.fullmatch(new):
        raise ValueError(f"{new!r} is no owner/name of a repository on GitHub")
    old = address(root)
    for file in files(root):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(old, new), encoding="utf-8")


if __name__ == "__main__":
    change(*sys.argv[1:])
