"""Clients whose updates are not finite."""

import numpy as np
import pytest

from federated import experiment, run_writer, simulate
from gptfl_jax import artifacts, training
from gptfl_jax.fl import rounds, sampling

from .conftest import make_config, weights


def with_inputs(setting, inputs, dtype="float32") -> experiment.Setting:
    """The setting with other training inputs, for natural clients."""
    config = make_config(partition="natural", dtype=dtype)
    source = setting.source
    source = source._replace(train=source.train._replace(inputs=inputs))
    model = experiment.models.create("convnet", 10, **config.model.options)
    learner = training.make_learner(
        model,
        training.example_of(inputs),
        normalisation=training.Normalisation((0.5,), (0.5,)),
        dtype=dtype,
    )
    algorithm = experiment.make_algorithm(config.federated, learner, setting.mesh)
    return setting._replace(source=source, learner=learner, algorithm=algorithm)


def first_two_in_cohorts(count: int) -> list[int]:
    """How many of clients 0 and 1 are in each cohort of 3 of the 11 natural clients."""
    cohorts = rounds.key_of(0, rounds.COHORTS)
    return [
        int((sampling.cohort(cohorts, done, 11, 3) < 2).sum()) for done in range(count)
    ]


@pytest.fixture(scope="module")
def setting_with_nan(setting) -> experiment.Setting:
    """Natural clients, the first two of which hold a NaN in every example."""
    train = setting.source.train
    inputs = train.inputs.astype(np.float32) / 255
    inputs[train.clients < 2] = np.nan
    return with_inputs(setting, inputs)


def test_clients_with_nan_are_dropped_and_counted(tmp_path, setting_with_nan, capsys):
    config = make_config(partition="natural", rounds=8)
    last = simulate.simulate(config, tmp_path, setting_with_nan)
    folder = tmp_path / "federated" / "fedavg-random-s0"
    metrics = artifacts.read_metrics(folder / "metrics.jsonl")[1:]
    bad = first_two_in_cohorts(8)
    assert 0 < sum(bad) and max(bad) < 3
    assert [line["dropped"] for line in metrics] == bad
    assert [line["clients"] for line in metrics] == [3 - count for count in bad]
    assert np.isfinite([line["train_loss"] for line in metrics]).all()
    assert np.isfinite(weights(folder, setting_with_nan)).all()
    outcome = simulate.outcome("run", {**last, "dropped": 2})
    assert outcome.endswith("2 clients dropped in the last round")


def test_a_cohort_of_nan_stops_the_run(tmp_path, setting_with_nan):
    train = setting_with_nan.source.train
    nothing_else = train._replace(inputs=np.full_like(train.inputs, np.nan))
    source = setting_with_nan.source._replace(train=nothing_else)
    config = make_config(partition="natural")
    with pytest.raises(
        run_writer.CohortFailed,
        match=r"round 1: the updates of all 3 clients were NaN or infinite.*"
        r"config\.federated\.client_learning_rate \(now 0\.1\)",
    ):
        simulate.simulate(config, tmp_path, setting_with_nan._replace(source=source))


@pytest.fixture(scope="module")
def setting_in_float16(setting) -> experiment.Setting:
    """Natural clients, the first two of which float16 cannot hold the inputs of."""
    train = setting.source.train
    inputs = train.inputs.astype(np.float32) / 255
    inputs[train.clients < 2] *= 1e6
    return with_inputs(setting, inputs, dtype="float16")


def test_clients_that_overflow_float16_are_dropped_and_counted(
    tmp_path, setting_in_float16
):
    config = make_config(partition="natural", dtype="float16", rounds=8)
    simulate.simulate(config, tmp_path, setting_in_float16)
    folder = tmp_path / "federated" / "fedavg-random-s0"
    metrics = artifacts.read_metrics(folder / "metrics.jsonl")[1:]
    too_large = first_two_in_cohorts(8)
    assert 0 < sum(too_large) and max(too_large) < 3
    assert [line["dropped"] for line in metrics] == too_large
    assert np.isfinite([line["train_loss"] for line in metrics]).all()
    assert np.isfinite(weights(folder, setting_in_float16)).all()


def test_a_cohort_that_overflows_float16_names_the_remedy(tmp_path, setting_in_float16):
    train = setting_in_float16.source.train
    all_large = train._replace(inputs=np.full_like(train.inputs, 1e6))
    source = setting_in_float16.source._replace(train=all_large)
    config = make_config(partition="natural", dtype="float16")
    with pytest.raises(
        run_writer.CohortFailed,
        match=r"round 1: the updates of all 3 clients were NaN or infinite.*set "
        r"config\.federated\.dtype \(now float16\) to bfloat16 or float32, lower "
        r"config\.federated\.client_learning_rate \(now 0\.1\)",
    ):
        simulate.simulate(config, tmp_path, setting_in_float16._replace(source=source))
