"""Notebooks: both files of a pair agree, and each runs from top to bottom."""

import re

import jupytext
import pytest

from notebooks import address, execute

NAMES = execute.names()
_MOST_BYTES = 300_000


def cells(path) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


def test_there_are_five():
    assert len(NAMES) >= 5
    kept = sorted(path.stem for path in execute.FOLDER.glob("*.ipynb"))
    assert kept == NAMES, "make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_the_pair_agrees(name):
    text, kept = (execute.FOLDER / f"{name}.{end}" for end in ("md", "ipynb"))
    assert cells(text) == cells(kept), f"python -m notebooks.execute {name}"
    title, install, *rest = (source for _, source in cells(text))
    assert title.startswith("# ") and "**Runs on**" in title
    (where,) = re.findall(r"colab\.research\.google\.com/github/(\S+?/\S+?)/", title)
    assert where == address.address()
    assert f"{where}/blob/main/notebooks/{name}.ipynb" in title
    assert "%pip install" in install and f"git+https://github.com/{where}" in install


def test_the_address_is_one_and_is_changed_everywhere(tmp_path, repository):
    there = address.address()
    for file in address.files():
        assert there in file.read_text(encoding="utf-8")
        copy = tmp_path / file.relative_to(repository)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    address.change("some-one/other.name", tmp_path)
    assert address.address(tmp_path) == "some-one/other.name"
    for file in address.files(tmp_path):
        text = file.read_text(encoding="utf-8")
        assert "some-one/other.name" in text and there not in text
    with pytest.raises(ValueError, match="'no address' is no owner/name"):
        address.change("no address", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_of_a_whole_run_and_small(name, repository):
    path = execute.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < _MOST_BYTES
    code = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert str(repository) not in str(output)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name, tmp_path):
    ran = execute.execute(name, tmp_path)
    code = [cell for cell in ran.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
