"""Damage for readers: the ways in which a record on disk can be other than written."""

import copy
import json
from collections.abc import Iterator
from typing import Any

DEEP = 100_000
_WRONG = {
    "null": None,
    "true": True,
    "a negative number": -1,
    "a huge number": 10**400,
    "a fraction": 0.5,
    "text": "x",
    "a lone surrogate": "\ud800",
    "a NUL": "a\0b",
    "a list": [[]],
    "a mapping": {"x": {}},
}
_LITERALS = {"NaN": "NaN", "infinity": "1e400", "5,000 digits": "9" * 5000}
_MARK = "here stands a literal"


def of_bytes(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Any file: empty, cut short, binary, not UTF-8. Gives (what was done, content)."""
    half = len(content) // 2
    yield "empty", b""
    yield "cut in half", content[:half]
    yield "zeros", bytes(len(content))
    yield "binary", bytes(range(256)) * 8
    yield "not UTF-8", content[:half] + b"\xff\xfe" + content[half:]
    yield "UTF-16", content.decode(errors="replace").encode("utf-16")


def of_json(value: Any, most_paths: int = 1000) -> Iterator[tuple[str, bytes]]:
    """A JSON value, of which each part in turn is missing, or of another type.

    Gives (what was done, content). Parts alike by their position in lists are damaged
    once: the first of each list.
    """
    whole = json.dumps(value).encode()
    yield from of_bytes(whole)
    yield "deep lists", b"[" * DEEP + b"]" * DEEP
    yield "deep mappings", b'{"a":' * DEEP + b"1" + b"}" * DEEP
    for path in list(_paths(value))[:most_paths]:
        name = "/".join(map(str, path)) or "all of it"
        for kind, wrong in _WRONG.items():
            yield f"{name}: {kind}", _dump(_replaced(value, path, wrong))
        for kind, literal in _LITERALS.items():
            text = json.dumps(_replaced(value, path, _MARK))
            yield f"{name}: {kind}", text.replace(f'"{_MARK}"', literal).encode()
        if path:
            yield f"{name}: missing", _dump(_without(value, path))


def of_json_lines(records: list[Any]) -> Iterator[tuple[str, bytes]]:
    """A file of a JSON value a line, of which the first is damaged as by `of_json`."""
    rest = b"".join(_dump(record) + b"\n" for record in records[1:])
    for kind, content in of_json(records[0]):
        yield kind, content + b"\n" + rest


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _paths(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _paths(entry, (*path, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))


def _replaced(value: Any, path: tuple, new: Any) -> Any:
    if not path:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return value


def _without(value: Any, path: tuple) -> Any:
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return value
