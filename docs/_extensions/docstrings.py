"""The project's docstrings as reStructuredText.

They are plain text: `names` in single backticks, and formulas and code in indented
blocks. What reStructuredText would take for markup is escaped.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example):$")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_WHOLE_CODE = re.compile(r"``.+?``|`[^`\n]*`|`[^`\n]+\n[^`\n]+`")
_NAME = re.compile(r"[A-Za-z_][\w.]*$")


def prose(line: str) -> str:
    """A line of text: names linked where the reference has them, all else escaped."""
    parts = _CODE.split(line)
    for number, part in enumerate(parts):
        if not number % 2:
            part = re.sub(r"([*|\\])", r"\\\1", part)
            parts[number] = re.sub(r"(\w)_(?=\W|$)", r"\1\\_", part)
        elif not part.startswith("``"):
            name = part.strip("`")
            parts[number] = f":py:obj:{part}" if _NAME.match(name) else f"``{name}``"
        # "`UserError`s": markup must not touch a letter.
        after = parts[number + 1][:1] if number + 1 < len(parts) else ""
        before = parts[number - 1][-1:] if number % 2 else ""
        if number % 2 and after.isalnum():
            parts[number] += "\\ "
        if number % 2 and before.isalnum():
            parts[number] = "\\ " + parts[number]
    return "".join(parts)


def converted(lines: list[str]) -> list[str]:
    """A docstring, dedented, whose sections are still Google's."""
    # Code that spans two lines goes to the first.
    text = _WHOLE_CODE.sub(
        lambda found: re.sub(r"\n\s*", " ", found[0]), "\n".join(lines)
    )
    lines = text.split("\n")
    result: list[str] = []
    block, depth, base = False, 0, 0
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            result.append(line)
            continue
        if _SECTION.match(line.strip()):
            block, base = False, indent + 4
            result.append(line)
            continue
        if indent == 0:
            base = 0
        if block and indent < depth:
            block = False
        after_gap = number == 0 or not lines[number - 1].strip()
        if not block and after_gap and number and indent >= base + 4:
            block, depth = True, indent
            result += [" " * (indent - 4) + ".. code-block:: text", ""]
        result.append(line if block else line[:indent] + prose(line[indent:]))
    return result


def convert(
    app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]
) -> None:
    """Changes the lines of one docstring, before napoleon reads them."""
    lines[:] = converted(lines)
    if what in ("attribute", "data", "property"):
        # Else napoleon takes what is before a colon of the first line for a type.
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", convert, priority=100)
    return {"parallel_read_safe": True}
