"""All stages called from Python, one after the other in one process, and again."""

import asyncio
import json
import pathlib

import pytest
from absl import flags
from ml_collections import ConfigDict

from federated import report, simulate
from generate import images, prompts
from gptfl_jax import launch
from train import downstream

STAGES = (prompts, images, downstream, simulate, report)


def small_config() -> ConfigDict:
    """The digits with the generator that ships, in seconds."""
    config = launch.read_config("digits:init=synthetic,num_clients=12,cohort_size=2")
    config.model.options = {"width": 4, "depth": 1}
    config.generate.update({"samples_per_class": "2", "num_steps": 2, "batch_size": 20})
    config.train.epochs = 1
    federated = {"rounds": 2, "local_epochs": 1, "learning_rate_schedule": "constant"}
    config.federated.update(federated)
    return config


def call_all(workdir: pathlib.Path) -> None:
    """As a notebook does: in a running event loop, no command line read."""

    async def cell() -> None:
        for stage in STAGES:
            stage.run(small_config(), workdir)

    asyncio.run(cell())


def content(workdir: pathlib.Path) -> dict[str, bytes]:
    """All files but those that hold nothing after a stage has ended."""
    files = (path for path in workdir.rglob("*") if path.is_file())
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in files
        if path.name != ".lock"
    }


@pytest.mark.long
def test_all_stages_are_functions(tmp_path, capsys, monkeypatch):
    call_all(tmp_path)
    assert not flags.FLAGS.is_parsed()
    rows = json.loads((tmp_path / "report.json").read_text())
    assert [row["name"] for row in rows] == ["Synthetic only", "GPT-FL (FedAvg)"]
    assert rows[1]["rounds"] == 2
    assert "report   " in capsys.readouterr().out

    def never(*args, **kwargs):
        pytest.fail("done a second time")

    # Called again, they find all done: the same files, and nothing is made or trained.
    before = content(tmp_path)
    monkeypatch.setattr(images.StableDiffusion, "from_pretrained", never)
    call_all(tmp_path)
    said = capsys.readouterr().out
    assert "2 rounds, all done" in said and "continuing after epoch 1 of 1" in said
    after = content(tmp_path)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == set()
