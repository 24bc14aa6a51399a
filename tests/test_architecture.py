"""Imports are those of docs/architecture.md, and files are of one idea."""

import ast
import importlib
import pathlib
import re

import pytest

PROGRAMS = ("generate", "train", "federated")
CODE = ("gptfl_jax", *PROGRAMS)

# Files of more than 600 lines, and why they are not parted.
_LONG = {
    "tests/references/torch_references.py": "what was recorded, and with what",
}
_MOST_LINES = 600


@pytest.fixture(scope="module")
def sources(repository) -> dict[str, ast.Module]:
    """The syntax tree of every module of the library and the programs, by its name."""
    found = {}
    for folder in CODE:
        for path in sorted((repository / folder).rglob("*.py")):
            name = ".".join(path.relative_to(repository).with_suffix("").parts)
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found[name.removesuffix(".__init__")] = tree
    assert len(found) > 80
    return found


@pytest.fixture(scope="module")
def imports(sources) -> dict[str, set[str]]:
    """The modules that each module imports, at its top or within a function."""

    def of(tree):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, "imports are absolute"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield full if full in sources else node.module

    return {
        name: (set(of(tree)) & set(sources)) - {name} for name, tree in sources.items()
    }


@pytest.fixture(scope="module")
def rooms(repository) -> dict[str, tuple[list[str], list[str]]]:
    """Room -> (what it holds, as prefixes of modules' names; the rooms it imports)."""
    page = (repository / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Rooms")[2].partition("\n## ")[0]
    found = {}
    for line in table.splitlines():
        if not line.startswith("| ") or line.startswith(("| room", "| ---")):
            continue
        room, holds, may = (cell.strip() for cell in line.strip("|").split("|"))
        paths = re.findall(r"`([^`]+)`", holds)
        prefixes = [path.strip("/").removesuffix(".py") for path in paths]
        names = [prefix.replace("/", ".") for prefix in prefixes]
        found[room] = names, [name for name in may.split(", ") if name]
    assert len(found) > 10
    return found


def room_of(module: str, rooms) -> str:
    """The room that holds a module: the one with the longest name before it."""
    fits = [
        (len(prefix), room)
        for room, (prefixes, _) in rooms.items()
        for prefix in prefixes
        if f"{module}.".startswith(f"{prefix}.")
    ]
    assert fits, f"{module} is in no room: docs/architecture.md takes a line for it"
    return max(fits)[1]


def test_rooms_exist_and_none_leads_back(rooms, sources):
    order = list(rooms)
    for place, (room, (prefixes, may)) in enumerate(rooms.items()):
        for prefix in prefixes:
            assert prefix in sources, f"{room} holds {prefix}, which there is not"
        for other in may:
            assert other in order[place + 1 :], f"{room} imports {other}, listed above"


def test_a_room_imports_what_the_page_says(rooms, imports):
    for module, others in imports.items():
        if module == "gptfl_jax":  # the library's face shows all of it
            continue
        room = room_of(module, rooms)
        for other in others:
            theirs = room_of(other, rooms)
            if theirs != room:
                assert theirs in rooms[room][1], (
                    f"{module} ({room}) imports {other} ({theirs}), which "
                    "docs/architecture.md does not allow"
                )


def test_programs_do_not_import_each_other(imports):
    for module, others in imports.items():
        program = module.split(".")[0]
        for other in others:
            assert other.split(".")[0] in (program, "gptfl_jax"), (module, other)


def test_no_two_modules_import_each_other(imports):
    left = {module: set(others) for module, others in imports.items()}
    while left:
        done = [module for module, others in left.items() if not others & set(left)]
        assert done, f"in a circle, or above one: {sorted(left)}"
        for module in done:
            del left[module]


def test_every_module_says_what_it_is(sources):
    assert not [name for name, tree in sources.items() if not ast.get_docstring(tree)]


def test_every_module_can_be_imported(sources):
    for name in sources:
        importlib.import_module(name)


def test_files_are_short_enough_to_be_of_one_idea(repository):
    long = set()
    for folder in (*CODE, "benchmarks", "configs", "tests"):
        for path in (repository / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").count("\n")
            if lines > _MOST_LINES:
                long.add(str(pathlib.PurePosixPath(path.relative_to(repository))))
    assert long <= set(_LONG)
