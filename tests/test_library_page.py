"""Every block of docs/library.md runs, in its order, and does what the page says."""

import re

import matplotlib.pyplot
import numpy as np
import PIL.Image
import pytest

import gptfl_jax as gf


def blocks(repository) -> list[str]:
    page = (repository / "docs/library.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)


def test_no_task_takes_more_than_ten_lines(repository):
    """Of the reader's own: imports, definitions and blank lines do not count."""
    for block in blocks(repository):
        statements = re.sub(
            r"\n(    |\n|\)|(import|from|class|def|@|with) )[^\n]*", "", block
        )
        assert len(statements.strip().splitlines()) < 10, block


@pytest.mark.long
def test_the_page_runs(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(repository):
        if "seven.png" in block:
            picture = names["images"][7, ..., 0].repeat(4, 0).repeat(4, 1)
            PIL.Image.fromarray(picture).save("seven.png")
        exec(block, names)
    matplotlib.pyplot.close("all")

    images, labels = names["images"], names["labels"]
    # Ten rounds of a linear model, chance being 0.1.
    assert names["run"].name == "Half"
    assert names["run"].metrics.accuracy[10] > 0.6
    assert len(names["synthetic"].labels) == 100
    assert names["gpt_fl"].name == "GPT-FL"
    first = names["gpt_fl"].metrics.loss[0]
    known = names["start"].evaluate(images[1500:], labels[1500:].astype(np.int32))
    assert first == pytest.approx(known.loss, rel=1e-5)
    assert [run.name for run in names["runs"]] == ["FedAvg", "FedProx", "SCAFFOLD"]
    assert (tmp_path / "algorithms.png").stat().st_size > 5_000
    assert isinstance(names["classifier"], gf.Classifier)
    np.testing.assert_allclose(
        names["predict"](images[:3]),
        names["classifier"].probabilities(images[:3]),
        atol=1e-5,
    )
    assert "accuracy" in capsys.readouterr().out
