"""What config files share."""

import pytest

from gptfl_jax import configuration
from gptfl_jax.configuration import presets
from gptfl_jax.errors import ConfigError


def test_names_that_are_no_fields_are_taken_out_of_the_config_string():
    for arg, rest, value in (
        ("tune=True", "", "True"),
        ("seed=3, tune = yes ,alpha=0.5", "seed=3,alpha=0.5", "yes"),
        ("tune=1,samples={'a': 1, 'b': 2},tune=2", "samples={'a': 1, 'b': 2}", "2"),
        ("seed=3,fortune=True", "seed=3,fortune=True", None),
        ("", "", None),
    ):
        assert presets.take(arg, "tune") == (rest, value)
    assert presets.take_flag("tune=true,seed=3", "tune") == ("seed=3", True)
    assert presets.take_flag("tune=False", "tune") == ("", False)
    assert presets.take_flag("seed=3", "tune") == ("seed=3", False)
    with pytest.raises(ConfigError, match="'tune=1': takes True or False"):
        presets.take_flag("tune=1", "tune")
    sizes = {"small": 1, "large": 9}
    assert presets.take_choice("size=small", "size", sizes) == ("", "small")
    assert presets.take_choice("a=b", "size", sizes, "large") == ("a=b", "large")
    with pytest.raises(ConfigError, match="huge: no such size"):
        presets.take_choice("size=huge", "size", sizes)


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


def test_what_a_start_is_worth_and_the_search_for_its_rates():
    config = configuration.default_config("federated", "compare")
    rates = {"fedavg": (0.5,), "fedopt": (0.1, 0.02)}
    setting = {
        **{"clients": 9, "alone": {"local_epochs": 7}, "synthetic": 40},
        "server_steps": 5,
    }
    config.federated.num_clients = 9
    presets.compare_starts(config, {"random": rates, "procedural": {}}, **setting)
    configuration.validate(config)
    methods = {each.name: each.changes for each in configuration.methods_of(config)}
    assert len(methods) == 14
    assert methods["fedavg-random"] == {
        **{"algorithm": "fedavg", "init": "random", "client_learning_rate": 0.5},
        "personalisation_every": 100,
    }
    assert "client_learning_rate" not in methods["fedavg-procedural"]
    options = methods["fedopt-random"]["algorithm_options"]
    assert options["server_learning_rate"] == 0.02
    alone = methods["local-procedural"]
    assert (alone["rounds"], alone["cohort_size"], alone["local_epochs"]) == (1, 9, 7)
    assert methods["clients-random"]["synthetic_per_client"] == 40
    assert methods["server-random"]["server_steps"] == 5

    presets.search_starts(config, ("random", "synthetic"), **setting)
    configuration.validate(config)
    found = [each.name for each in configuration.methods_of(config)]
    # As many rates for each start: four a method, for FedOpt nine pairs.
    assert len(found) == (6 * 4 + 9) * 2 and "fedopt-0_1-0_003-synthetic" in found
