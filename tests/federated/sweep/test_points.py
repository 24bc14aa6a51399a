import itertools

import pytest

from federated import sweep
from federated.sweep.points import points
from gptfl_jax import launch
from gptfl_jax.errors import ConfigError

from ..conftest import make_config


def sweep_of(*grid, **compare):
    config = make_config()
    config.compare.update({"grid": grid, **compare})
    return config


def test_every_combination_once_without_options_that_are_not_taken():
    found = points(
        sweep_of(
            "config.federated.algorithm_options.mu=0.1,1",
            "federated.algorithm=fedavg,fedprox",
            "federated.client_learning_rate=0.1, 0.3",
        )
    )
    mu = "federated.algorithm_options.mu"
    assert [tuple(point.values.values()) for point in found] == [
        ("fedavg", "0.1"),
        ("fedavg", "0.3"),
        ("0.1", "fedprox", "0.1"),
        ("0.1", "fedprox", "0.3"),
        ("1", "fedprox", "0.1"),
        ("1", "fedprox", "0.3"),
    ]
    assert mu not in found[0].values and found[2].values[mu] == "0.1"
    last = found[-1].config.federated
    assert last.algorithm_options.to_dict() == {"mu": 1}
    assert last.client_learning_rate == 0.3
    assert found[1].config.federated.algorithm_options.to_dict() == {}
    names = [point.name for point in found]
    assert len(set(names)) == 6
    assert names[1].startswith("fedavg-0.3-")


def test_fields_of_one_value_are_in_no_name():
    (one, other) = points(
        sweep_of("federated.rounds=4", "model.options.width=4,8"),
    )
    assert one.name.startswith("4-") and other.name.startswith("8-")
    assert one.config.federated.rounds == other.config.federated.rounds == 4
    assert other.config.model.options.width == 8


def test_draws_are_those_of_fewer_and_even_on_a_log_scale():
    grid = (
        "federated.client_learning_rate=0.01..10",
        "federated.init=random,synthetic",
        "federated.batch_size=2..200",
    )
    few = points(sweep_of(*grid, trials=5))
    many = points(sweep_of(*grid, trials=300))
    assert [point.values for point in many[:5]] == [point.values for point in few]
    rates = [point.config.federated.client_learning_rate for point in many]
    assert 0.01 <= min(rates) < 0.02 and 5 < max(rates) <= 10
    # A third of the draws in each factor of ten: 100 of 300, deviation 8.2.
    for low in (0.01, 0.1, 1):
        assert abs(sum(low <= rate < 10 * low for rate in rates) - 100) < 30
    inits = [point.config.federated.init for point in many]
    assert abs(inits.count("synthetic") - 150) < 35  # deviation 8.7
    sizes = {point.config.federated.batch_size for point in many}
    assert all(isinstance(size, int) and 2 <= size <= 200 for size in sizes)
    other = sweep_of(*grid, trials=5)
    other.seed = 1
    assert [p.values for p in points(other)] != [p.values for p in few]


def test_a_range_of_a_whole_option_draws_whole_numbers():
    found = points(
        sweep_of(
            "federated.partition=dirichlet",
            "federated.partition_options.min_examples=1..20",
            "federated.partition_options.alpha=0.1..10",
            "model.options.width=4..400",
            "federated.client_options.momentum=0.1..0.9",
            trials=30,
        )
    )
    for point in found:
        options = point.config.federated.partition_options
        assert isinstance(options.min_examples, int) and 1 <= options.min_examples <= 20
        assert isinstance(point.config.model.options.width, int)
        assert point.values["federated.partition_options.min_examples"] == str(
            options.min_examples
        )
    for field in ("partition_options.alpha", "client_options.momentum"):
        drawn = {float(point.values[f"federated.{field}"]) for point in found}
        assert len(drawn) > 15 and not any(map(float.is_integer, drawn))


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((), "compare.grid is empty"),
        (("federated.init",), "takes field=value,value"),
        (("federated.init=",), "takes field=value,value"),
        (("federated.rounds=1", "federated.rounds=2"), "has a line already"),
        (("seed=1,2",), "takes fields of federated, model, data, not seed"),
        (("federated.run=a,b",), "not federated.run"),
        (("federated.round=1,2",), "no such field; did you mean"),
        (("federated.rounds=1,0",), "config.federated.rounds = 0"),
        (("federated.algorithm_options.mu=1",), "taken at no point of the grid"),
        (("federated.client_learning_rate=0.1..1",), r"\(--trials=N\)"),
    ],
)
def test_what_is_no_grid(grid, message):
    with pytest.raises(ConfigError, match=message):
        points(sweep_of(*grid))


def test_a_range_from_low_to_high():
    with pytest.raises(ConfigError, match="0 < low..high"):
        points(sweep_of("federated.client_learning_rate=1..0.1", trials=2))


@pytest.mark.parametrize(("name", "count"), [("digits", 70), ("fsdd", 100)])
def test_the_searches_that_come_with_the_package(name, count):
    config = launch.read_config(f"{name}:tune=True,init=runs/{name}/pretrain")
    found = points(config)
    assert len({point.name for point in found}) == count
    assert config.compare.validation_fraction == 0


def test_runs_of_one_program_are_neighbours():
    config = sweep_of(
        "federated.init=random,synthetic",
        "federated.client_learning_rate=0.1,0.3",
        "federated.batch_size=8,9",
        seeds=(4, 7),
    )
    configs = sweep.runs(config, points(config))
    found = [
        (
            *(each.federated.batch_size, each.federated.init),
            *(each.federated.client_learning_rate, each.seed),
        )
        for each in configs
    ]
    assert found == [
        *itertools.product((8, 9), ("random", "synthetic"), (0.1, 0.3), (4, 7))
    ]
