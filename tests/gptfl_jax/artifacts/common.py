"""What the tests of written files share."""

import pathlib
import subprocess
import sys
import textwrap

from gptfl_jax.artifacts import Sample

SAMPLES = [
    Sample("seven/seven_0.png", "seven", "a thin seven", 17, 7.5, "glyphs"),
    Sample("one/one_0.png", "one", 'a "one"\nin ink', 2**63, None, "glyphs"),
]


def python(code: str, *arguments: object) -> subprocess.Popen:
    """A second process that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def files_below(folder: pathlib.Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    )
