"""Tables in docs/performance.md, each between two marks of its own."""

import datetime
import os
import pathlib
import platform
import re
from collections.abc import Sequence
from importlib import metadata

PAGE = pathlib.Path("docs/performance.md")


def write(name: str, table: str, path: pathlib.Path = PAGE) -> None:
    """Puts a table between the marks of `name`, which are added where missing."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = path.read_text() if path.exists() else "# Performance\n"
    block = f"{begin}\n{table.rstrip()}\n{end}"
    if begin in text and end in text:
        head, _, rest = text.partition(begin)
        text = head + block + rest.partition(end)[2]
    else:
        text = f"{text.rstrip()}\n\n{block}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table in Markdown; the first `texts` columns are text, others are numbers."""
    rule = ["---"] * texts + ["---:"] * (len(header) - texts)
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def circumstances() -> str:
    """Date, machine and versions, as a sentence."""
    versions = [f"{name} {metadata.version(name)}" for name in ("jax", "flax", "optax")]
    python = f"Python {platform.python_version()}"
    return f"{datetime.date.today()}, {machine()}; {', '.join([python, *versions])}."


def machine() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*: (.*)", text).group(1)
        memory = pathlib.Path("/proc/meminfo").read_text()
        gigabytes = int(re.search(r"MemTotal:\s*(\d+)", memory).group(1)) / 2**20
    except (OSError, AttributeError):
        return f"{model}, {os.cpu_count()} cores"
    vector = " with AVX-512" if "avx512f" in text else ""
    return f"{model}{vector}, {os.cpu_count()} cores, {gigabytes:.0f} GB"
