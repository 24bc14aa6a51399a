"""What config files share."""

import pytest

from gptfl_jax.configuration import presets


@pytest.mark.parametrize(
    ("arg", "rest", "there"),
    [
        ("tune=True", "", True),
        ("seed=3, tune=true,alpha=0.5", "seed=3,alpha=0.5", True),
        ("seed=3,fortune=True", "seed=3,fortune=True", False),
        ("", "", False),
    ],
)
def test_a_switch_is_taken_out_of_the_config_string(arg, rest, there):
    assert presets.take_flag(arg, "tune") == (rest, there)


def test_data_are_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("GPTFL_DATA_DIR", "/data")
    assert presets.data_folder("fsdd") == "/data/fsdd"
    monkeypatch.delenv("GPTFL_DATA_DIR")
    assert presets.fedaudio("esc50").data.folder == "data/esc50"


def test_each_method_goes_from_each_start():
    methods = {"a": {"algorithm": "fedavg"}, "b": {"algorithm": "fedopt"}}
    assert presets.from_each_start(methods) == {
        "a-scratch": {"algorithm": "fedavg", "init": "random"},
        "a-gptfl": {"algorithm": "fedavg", "init": "synthetic"},
        "b-scratch": {"algorithm": "fedopt", "init": "random"},
        "b-gptfl": {"algorithm": "fedopt", "init": "synthetic"},
    }


def test_folds_are_turns_and_one_that_is_named_is_the_only_one():
    config = presets.fedaudio("esc50")
    config.data.options.test_folds = 4
    presets.set_folds(config, "seed=3", "test_folds", count=3)
    turns = {f"fold{fold}": {"test_folds": fold} for fold in (1, 2, 3)}
    assert config.compare.data.to_dict() == turns
    presets.set_folds(config, "test_fold=4", "test_folds", count=5)
    assert config.compare.data.to_dict() == {"fold4": {"test_folds": 4}}
