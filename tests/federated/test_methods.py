"""From the fields of a config to algorithm, cohorts, partition and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from federated import experiment, simulate
from gptfl_jax import artifacts
from gptfl_jax.data import partition
from gptfl_jax.errors import UserError
from gptfl_jax.fl import algorithms, sampling

from .conftest import make_config


def composed(monkeypatch, setting, **fields):
    """(LocalTraining, keywords) that the algorithm's function is called with."""
    config = make_config(**fields).federated
    calls = []

    def function(learner, local, **keywords):
        assert learner is setting.learner
        calls.append((local, keywords))

    monkeypatch.setattr(algorithms, config.algorithm, function)
    experiment.make_algorithm(config, setting.learner, None)
    return calls[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"algorithm": "fedavg", "prox_mu": 0.5}, {}),
        ({"algorithm": "fedprox", "prox_mu": 0.5}, {"mu": 0.5}),
        (
            {"algorithm": "fedavgm", "server_momentum": 0.7},
            {"beta": 0.7, "server_learning_rate": 1.0},
        ),
        (
            {"algorithm": "fedavgm", "server_learning_rate": 0.2},
            {"beta": 0.9, "server_learning_rate": 0.2},
        ),
        (
            {"algorithm": "scaffold", "scaffold_control": "start"},
            {"control": "start", "server_learning_rate": 1.0},
        ),
        ({"algorithm": "fednova", "fednova_mu": 0.3}, {"mu": 0.3}),
        ({"algorithm": "feddyn", "feddyn_alpha": 0.2}, {"alpha": 0.2}),
        (
            {"algorithm": "moon", "moon_mu": 5.0, "moon_temperature": 0.1},
            {"mu": 5.0, "temperature": 0.1},
        ),
        ({"algorithm": "local_only"}, {}),
    ],
)
def test_algorithm_gets_its_own_fields(monkeypatch, setting, fields, expected):
    common = {
        "weighting": "uniform",
        "client_execution": "vmap",
        "client_lanes": 2,
        "diagnostics": False,
        "dropout": 0.25,
        "batch_norm": "freeze",
    }
    _, keywords = composed(monkeypatch, setting, **fields, **common)
    assert keywords == {
        **expected,
        "weighting": "uniform",
        "aggregation": None,
        "execution": "vmap",
        "mesh": None,
        "lanes": 2,
        "diagnostics": False,
        "dropout": 0.25,
        "batch_norm": "freeze",
    }


@pytest.mark.parametrize(("rate", "step"), [(0.0, 1e-3), (0.5, 0.5)])
def test_server_optimizer_of_fedopt(monkeypatch, setting, rate, step):
    fields = {"algorithm": "fedopt", "server_learning_rate": rate}
    _, keywords = composed(monkeypatch, setting, **fields)
    optimizer = keywords["server_optimizer"]
    gradient = np.float32([3.0])
    update, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(update, [-step], rtol=1e-5)  # Adam's first step.


def test_local_training(monkeypatch, setting):
    fields = {
        "batch_size": 7,
        "local_epochs": 3,
        "local_steps": 5,
        "clip_norm": 2.0,
        "drop_last": True,
        "client_optimizer": "sgd",
        "client_learning_rate": 0.5,
        "client_options": {"momentum": 0.5, "nesterov": True},
    }
    local, _ = composed(monkeypatch, setting, **fields)
    assert local[1:6] == (7, 3, 5, 2.0, True)
    assert local.schedule is None and local.local_schedule is None
    gradient = np.float32([1.0])
    update, _ = local.optimizer.update(gradient, local.optimizer.init(gradient))
    np.testing.assert_allclose(update, [-0.75])  # 0.5 (1 + 0.5)


def test_schedules_over_rounds_and_within_one(monkeypatch, setting):
    def factors(schedule, at):
        return [float(schedule(x)) for x in at]

    fields = {"learning_rate_schedule": "cosine", "local_schedule": "cosine"}
    local, _ = composed(monkeypatch, setting, rounds=8, **fields)
    np.testing.assert_allclose(
        factors(local.schedule, (0, 2, 4, 8)),
        [1, (1 + np.sqrt(0.5)) / 2, 0.5, 0],
        atol=1e-7,
    )
    np.testing.assert_allclose(
        factors(local.local_schedule, (0.0, 0.25, 0.5)),
        [1, (1 + np.sqrt(0.5)) / 2, 0.5],
        atol=1e-7,
    )
    fields = {"learning_rate_schedule": "step", "step_rounds": 3, "step_factor": 0.5}
    local, _ = composed(monkeypatch, setting, **fields)
    np.testing.assert_allclose(
        factors(local.schedule, range(7)), [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    )


def test_aggregations(monkeypatch, setting):
    """Each by what it makes of the updates 0, 1, 2 and 9."""
    expected = {
        "clipped_mean": (0 + 1 + 1.5 + 1.5) / 4,
        "trimmed_mean": (1 + 2) / 2,
        "median": (1 + 2) / 2,
    }
    fields = {"update_clip_norm": 1.5, "trimmed_fraction": 0.25}
    for name, value in expected.items():
        _, keywords = composed(monkeypatch, setting, aggregation=name, **fields)
        combine = keywords["aggregation"]
        sums = combine.init(jnp.zeros(1), 4)
        weights = combine.weight(jnp.array([5, 1, 1, 1]))
        updates = jnp.array([[0.0], [1.0], [2.0], [9.0]])
        sums = combine.add(sums, updates, weights, jnp.arange(4))
        found = combine.finish(sums, weights, jax.random.key(0))
        np.testing.assert_allclose(found, [value], rtol=1e-6, err_msg=name)


def test_what_does_not_go_together_is_refused_by_its_field(setting):
    config = make_config(algorithm="fednova", client_optimizer="adam").federated
    with pytest.raises(UserError, match=r"algorithm = 'fednova': fednova needs SGD"):
        experiment.make_algorithm(config, setting.learner, None)


def test_cohorts(setting, tmp_path):
    key = jax.random.key(4)
    data = experiment.deal(make_config(), setting.source.train)

    def drawn(done, **fields):
        sampler = experiment.make_sampler(make_config(**fields).federated, data)
        return np.asarray(sampler(key, done)).tolist()

    assert drawn(3) == sampling.cohort(key, 3, 12, 3).tolist()
    again = drawn(3, sampling="with_replacement", cohort_size=20)
    assert again == sampling.cohort_with_replacement(key, 3, 12, 20).tolist()
    weighted = drawn(3, sampling="by_examples")
    offsets = jax.numpy.asarray(data.offsets)
    assert weighted == sampling.cohort_by_examples(key, 3, offsets, 3).tolist()

    trace = np.zeros((2, 12), bool)
    trace[0, :3] = trace[1, 5:9] = True
    np.save(tmp_path / "trace.npy", trace)
    fields = {
        "sampling": "availability",
        "availability_file": str(tmp_path / "trace.npy"),
    }
    assert sorted(drawn(4, **fields)) == [0, 1, 2]
    assert set(drawn(5, **fields)) < {5, 6, 7, 8}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (np.ones((2, 11), bool), r"bool \(2, 11\): takes booleans \[period, 12\]"),
        (np.ones((2, 12), np.int8), "something else: takes booleans"),
        (np.eye(12, dtype=bool), r"row 0 has 1 clients, fewer than .*cohort_size = 3"),
        (None, "cannot be read"),
    ],
)
def test_bad_availability_traces(setting, tmp_path, table, says):
    file = tmp_path / "trace.npy"
    if table is not None:
        np.save(file, table)
    data = experiment.deal(make_config(), setting.source.train)
    config = make_config(sampling="availability", availability_file=str(file))
    with pytest.raises(UserError, match=says):
        experiment.make_sampler(config.federated, data)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"partition": "dirichlet_balanced", "alpha": 0.5, "min_examples": 4},
            lambda d: partition.dirichlet_balanced(d.labels, 12, 0.5, 0, 4),
        ),
        (
            {"partition": "shards", "shards_per_client": 3},
            lambda d: partition.shards(d.labels, 12, 0, 3),
        ),
        (
            {"partition": "quantity_skew", "alpha": 2.0},
            lambda d: partition.quantity_skew(len(d.labels), 12, 2.0, 0, 5),
        ),
    ],
)
def test_partitions(setting, fields, expected):
    train = setting.source.train
    data = experiment.deal(make_config(**fields), train)
    owner = expected(train)
    np.testing.assert_array_equal(np.diff(data.offsets), np.bincount(owner))
    np.testing.assert_array_equal(
        data.labels, train.labels[np.argsort(owner, kind="stable")]
    )


def test_the_best_checkpoint_and_the_last_ones_stay(tmp_path, setting, monkeypatch):
    accuracies = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.6, 5: 0.8}
    metrics = simulate.evaluation.metrics

    def pretend(counts):
        seen.append(None)
        value = accuracies.get(len(seen) - 1, 0.1)  # The first is round 0.
        return metrics(counts)._replace(accuracy=value)

    seen = []
    monkeypatch.setattr(simulate.training, "metrics", pretend)
    config = make_config(rounds=5, eval_every=1, checkpoint_every=1)
    simulate.simulate(config, tmp_path, setting)
    folder = tmp_path / "federated" / "fedavg-random-s0" / "checkpoints"
    with artifacts.Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_step() == 2


def test_checkpoints_of_untested_rounds_are_never_the_best(tmp_path, setting):
    config = make_config(rounds=6, eval_every=4, checkpoint_every=1, keep_checkpoints=1)
    simulate.simulate(config, tmp_path, setting)
    folder = tmp_path / "federated" / "fedavg-random-s0"
    metrics = artifacts.read_metrics(folder / "metrics.jsonl")
    tested = {m["step"]: m["accuracy"] for m in metrics[1:] if "accuracy" in m}
    assert tested.keys() == {4, 6}
    best = max(tested, key=lambda step: (tested[step], step))
    with artifacts.Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.best_step() == best
        assert checkpoints.steps() == sorted({best, 6})


def test_represent_is_what_the_last_layer_is_given(setting):
    learner = setting.learner
    variables = learner.init(jax.random.key(0))
    inputs = setting.source.test.inputs[:5]
    features = learner.represent(variables, inputs)
    last = variables["params"]["classifier"]
    np.testing.assert_allclose(
        features @ last["kernel"] + last["bias"],
        learner.predict(variables, inputs),
        rtol=1e-5,
        atol=1e-5,
    )
