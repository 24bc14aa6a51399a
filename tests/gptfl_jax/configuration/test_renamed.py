"""Fields of earlier versions, in configs and in records."""

import json

import pytest

from gptfl_jax import choices, configuration
from gptfl_jax.configuration.renamed import RENAMED, in_todays_words
from gptfl_jax.errors import ConfigError

# A whole section as the version before wrote it, at its defaults.
OLD = {
    "algorithm": "fedavg",
    "sampling": "uniform",
    "availability_file": "",
    "aggregation": "mean",
    "update_clip_norm": 1.0,
    "noise_multiplier": 0.0,
    "trimmed_fraction": 0.1,
    "prox_mu": 0.01,
    "fednova_mu": 0.0,
    "feddyn_alpha": 0.01,
    "moon_mu": 1.0,
    "moon_temperature": 0.5,
    "scaffold_control": "path",
    "server_momentum": 0.9,
    "server_optimizer": "adam",
    "server_learning_rate": 0.0,
    "server_options": {},
    "partition": "natural",
    "alpha": 0.1,
    "min_examples": 1,
    "shards_per_client": 2,
}


def section(**fields):
    """What a config of today holds, in the words of a record."""
    config = configuration.default_config("federated")
    for name, value in fields.items():
        configuration.put(config, f"federated.{name}", value)
    configuration.validate(config)
    plain = json.loads(json.dumps(config.federated.to_dict()))
    return {k: v for k, v in in_todays_words(plain).items() if k in NAMES}


NAMES = [
    *("algorithm", "algorithm_options", "aggregation", "aggregation_options"),
    *("partition", "partition_options", "sampling", "sampling_options"),
]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {}),
        ({"prox_mu": 0.5, "alpha": 7.0}, {}),  # of others, it meant nothing
        (
            {"algorithm": "fedprox", "prox_mu": 1},
            {"algorithm": "fedprox", "algorithm_options": {"mu": 1.0}},
        ),
        ({"algorithm": "fedprox"}, {"algorithm": "fedprox"}),
        (
            {"algorithm": "fednova", "fednova_mu": 0.3},
            {"algorithm": "fednova", "algorithm_options": {"mu": 0.3}},
        ),
        ({"algorithm": "feddyn"}, {"algorithm": "feddyn"}),
        (
            {"algorithm": "moon", "moon_mu": 5.0, "moon_temperature": 0.1},
            {"algorithm": "moon", "algorithm_options": {"mu": 5.0, "temperature": 0.1}},
        ),
        (
            {"algorithm": "scaffold", "scaffold_control": "start"},
            {"algorithm": "scaffold", "algorithm_options": {"control": "start"}},
        ),
        (
            {"algorithm": "fedavgm", "server_momentum": 0.5},
            {"algorithm": "fedavgm", "algorithm_options": {"beta": 0.5}},
        ),
        ({"algorithm": "fedopt"}, {"algorithm": "fedopt"}),
        (
            {
                "algorithm": "fedopt",
                "server_optimizer": "yogi",
                "server_learning_rate": 0.1,
                "server_options": {"eps": 1e-3},
            },
            {
                "algorithm": "fedopt",
                "algorithm_options": {
                    "server_optimizer": "yogi",
                    "server_learning_rate": 0.1,
                    "server_options": {"eps": 1e-3},
                },
            },
        ),
        (
            {"aggregation": "clipped_mean", "noise_multiplier": 1.5},
            {
                "aggregation": "clipped_mean",
                "aggregation_options": {"noise_multiplier": 1.5},
            },
        ),
        (
            {"aggregation": "trimmed_mean", "trimmed_fraction": 0.2},
            {"aggregation": "trimmed_mean", "aggregation_options": {"fraction": 0.2}},
        ),
        (
            {"partition": "dirichlet", "alpha": 0.5, "min_examples": 5},
            {
                "partition": "dirichlet",
                "partition_options": {"alpha": 0.5, "min_examples": 5},
            },
        ),
        ({"partition": "shards"}, {"partition": "shards"}),
        (
            {"sampling": "availability", "availability_file": "x.npy"},
            {"sampling": "availability", "sampling_options": {"file": "x.npy"}},
        ),
    ],
)
def test_records_of_the_version_before_say_the_same(old, new):
    assert in_todays_words({**OLD, **old}) == section(**new)


def test_every_new_name_is_an_option():
    for _, (family, of, option, _) in RENAMED.items():
        for name in of:
            assert option in choices.options(family, choices.find(family, name))


def test_a_record_runs_no_code(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit('it ran')")
    record = {**OLD, "algorithm": str(file), "algorithm_options": {"x": 3}}
    assert in_todays_words(record)["algorithm_options"] == {"x": 3}


@pytest.mark.parametrize("damage", [None, 3, [], {"a": 1}])
def test_damaged_records_stay_what_they_are(damage):
    for name in NAMES:
        in_todays_words({**OLD, name: damage})


def test_old_names_are_refused_with_the_new_ones():
    config = configuration.default_config("federated", "compare")
    says = (
        "config.federated.prox_mu is now config.federated.algorithm_options.mu, an "
        "option of fedprox"
    )
    with pytest.raises(ConfigError) as caught:
        configuration.set_text(config, "federated.prox_mu", "0.1")
    assert str(caught.value) == says
    config.compare.methods = {"a": {"algorithm": "fedprox", "prox_mu": 0.1}}
    with pytest.raises(ConfigError) as caught:
        configuration.validate(config)
    assert str(caught.value) == says.replace(
        "federated.prox_mu", "compare.methods.a.prox_mu"
    )
    by_hand = configuration.default_config("federated").unlock()
    by_hand.federated.alpha = 0.5
    with pytest.raises(ConfigError, match="partition_options.alpha, an option of diri"):
        configuration.validate(by_hand)


@pytest.mark.parametrize("section", ["train", "federated"])
def test_fields_that_came_later_are_no_difference_where_they_are_unset(section):
    config = configuration.default_config(section)
    fields = config[section].to_dict()
    kept = configuration.without_unset(fields)
    later = {
        "trainable",
        "crop_area",
        "crop_aspect",
        "brightness",
        "contrast",
        "saturation",
        "hue",
    }
    if section == "federated":
        later |= {"synthetic_per_client", "synthetic_allocation"}
        later |= {"server_steps", "server_batch_size", "server_step_rate"}
    else:
        later |= {"procedural_classes", "procedural_per_class"}
        later |= {"synthetic_per_class"}
    assert set(fields) - set(kept) == later
    fields = {**fields, "hue": 0.1, "crop_area": 0.5}
    assert configuration.without_unset(fields) == {**kept, "hue": 0.1, "crop_area": 0.5}
