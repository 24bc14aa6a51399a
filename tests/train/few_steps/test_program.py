"""Distillation of a generator of a few weights, as a user runs it."""

import json

import numpy as np
import pytest

from gptfl_jax import artifacts, configuration, interruption, launch, planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.released import lora
from tests.small_generators import save_stable_diffusion
from train.few_steps import program
from train.glyphs.prompts import all_prompts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_stable_diffusion(folder, 0)
    texts = {"cat": ["a photo of a cat", "a drawing of a cat"], "dog": ["a dog"]}
    artifacts.write_json(folder / "prompts.json", {"prompts": texts})
    return folder


def tiny_config(model, **fields):
    config = launch.read_config("few_steps")
    settings = {
        "model": str(model),
        "prompts": str(model / "prompts.json"),
        "steps": 2,
        "steps_of_teacher": 4,
        "trajectories": 12,
        "rank": 2,
        "student_steps": 4,
        "batch_size": 8,
        "checkpoint_every": 2,
        "log_every": 1,
    }
    config.few_steps.update(settings | fields)
    configuration.validate(config)
    return config


@pytest.mark.long
def test_the_student_comes_nearer_to_its_teacher(model, tmp_path):
    fields = {"student_steps": 60, "log_every": 20, "checkpoint_every": 60}
    program.run(tiny_config(model, **fields), tmp_path)
    lines = artifacts.read_records(tmp_path / "student" / "metrics.jsonl")
    losses = [line["loss"] for line in lines]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert StableDiffusion.from_pretrained(model, lora=tmp_path / "lora")


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_weights(model, tmp_path, monkeypatch):
    program.run(tiny_config(model), tmp_path / "whole")
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "should_save", lambda: next(asked))
        with pytest.raises(interruption.Interrupted, match="after step 2 of 4"):
            program.run(tiny_config(model), tmp_path / "killed")
    assert not (tmp_path / "killed" / "lora").exists()
    program.run(tiny_config(model), tmp_path / "killed")
    whole, killed = (
        (tmp_path / name / "lora" / lora.FILE).read_bytes()
        for name in ("whole", "killed")
    )
    assert whole == killed
    with np.load(tmp_path / "whole" / "trajectories" / "0000000.npz") as stored:
        assert stored["places"].shape == stored["outputs"].shape
        assert stored["places"].shape[:2] == (12, 2)
        assert json.loads(str(stored["made_with"]))["steps_of_teacher"] == 4


def test_prompts_are_those_of_a_file_or_of_digits(model, tmp_path):
    assert program._texts(tiny_config(model).few_steps) == [
        *("a photo of a cat", "a drawing of a cat", "a dog")
    ]
    assert program._texts(tiny_config(model, prompts="").few_steps) == all_prompts()
    missing = tiny_config(model, prompts=str(tmp_path / "prompts.json"))
    with pytest.raises(UserError, match="prompts.json: there is no such file: name a"):
        program._texts(missing.few_steps)


@pytest.mark.long
def test_a_plan_counts_what_is_trained(model):
    # Where a line ends depends on how long the folder's name is.
    table = " ".join(planning.table(program.plan(tiny_config(model))).split())
    assert "12 samples of" in table and "4 steps at guidance 2, kept at 2" in table
    assert "4 steps" in table
