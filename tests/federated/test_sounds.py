"""Stages 2 and 3 on sounds, as configs/fsdd.py has them, of a few tones."""

import json

import jax
import numpy as np
import pytest

from federated import compare, report
from gptfl_jax import artifacts, configuration, launch
from gptfl_jax.errors import ConfigError
from train import downstream, training_data

from ..recordings import SPEAKERS, write_fsdd, write_synthetic

FIELDS = {
    "model.options": {"widths": (8,)},
    "data.options": {"test_speakers": "cleo"},
    "train.epochs": 10,
    "train.eval_every": 10,
    "train.batch_size": 20,
    "train.learning_rate": 0.02,
    **{"train.tempo": 0.0, "train.warp": 0.0, "train.frequency_masks": 0},
    **{"train.time_shift": 1, "train.time_masks": 1, "train.time_mask_width": 2},
    "federated.rounds": 2,
    "federated.cohort_size": 2,
    "federated.local_steps": 2,
    "federated.batch_size": 8,
    "federated.time_shift": 2,
    "compare.methods": {"gptfl": {"init": "synthetic"}},
    "compare.data": {name: {"test_speakers": name} for name in SPEAKERS[:2]},
    "compare.seeds": (0,),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    write_fsdd(folder / "data", digits=4)
    write_synthetic(folder / "run", per_class=20, digits=4)
    return folder / "run"


@pytest.fixture
def config(workdir):
    config = launch.read_config("fsdd")
    for name, value in FIELDS.items():
        configuration.put(config, name, value)
    config.data.folder = str(workdir.parent / "data")
    configuration.validate(config)
    return config


def test_all_stages_on_sounds(workdir, config, capsys):
    config.train.data = "synthetic"
    downstream.run(config, workdir)
    said = capsys.readouterr().out
    assert "80 synthetic clips loaded" in said
    assert "no synthetic clips of 4, 5, 6, 7, 8, 9" in said
    lines = artifacts.read_metrics(workdir / "pretrain" / "metrics.jsonl")
    # Tones of four pitches are told apart, by a speaker that is not heard either.
    assert lines[-1]["accuracy"] > 0.7
    compare.run(config, workdir)
    said = capsys.readouterr().out
    assert "2 clients, 32 examples" in said and "[2/2] gptfl-bert-s0" in said
    report.run(config, workdir)
    rows = {
        row["name"]: row for row in json.loads((workdir / "report.json").read_text())
    }
    by_turn = rows["GPT-FL (FedAvg)"]["by_turn"]
    assert list(by_turn) == ["anna", "bert"]
    assert rows["Synthetic only"]["runs"] == 2
    page = (workdir / "report.html").read_text()
    assert page.count("<audio") == 8 and "accuracy % in turn" in page


def test_both_kinds_of_data_are_trained_on_together(workdir, config):
    config.train.data = "both"
    config.train.validation_fraction = 0.0
    data = training_data.load(config, workdir)
    # 32 of anna and bert, 80 synthetic ones, all in the 15 frames of cleo's 0.14 s.
    features, lengths = data.train.inputs
    assert features.shape == (112, 15, 40) and lengths.max() == 15
    assert len(data.test.labels) == 16
    learner = downstream.make_learner(config, data)
    inputs = jax.tree.map(lambda x: x[:2], data.test.inputs)
    logits = learner.predict(learner.init(jax.random.key(0)), inputs)
    assert logits.shape == (2, 10) and np.isfinite(logits).all()


def test_augmentation_of_pictures_is_refused_for_sounds(workdir, config):
    config.train.flip = True
    data = training_data.load(config, workdir)
    with pytest.raises(ConfigError, match=r"config.train.flip = True is for pictures"):
        downstream.make_learner(config, data)
