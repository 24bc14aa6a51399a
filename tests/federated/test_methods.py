"""From the fields of a config to algorithm, cohorts, partition and checkpoints."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from federated import experiment, run_files, simulate
from gptfl_jax import artifacts, choices, families
from gptfl_jax.artifacts import CheckpointMismatch
from gptfl_jax.data import partition
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.fl import algorithms, sampling

from .conftest import make_config


def composed(monkeypatch, setting, **fields):
    """(LocalTraining, keywords) that the algorithm's function is called with."""
    config = make_config(**fields).federated
    calls = []

    real = getattr(algorithms, config.algorithm)

    @functools.wraps(real)
    def function(learner, local, **keywords):
        assert learner is setting.learner
        calls.append((local, keywords))

    available = choices.available

    def pretended(family):
        known = available(family)
        if family is families.ALGORITHM:
            known = {**known, config.algorithm: function}
        return known

    monkeypatch.setattr(choices, "available", pretended)
    experiment.make_algorithm(config, setting.learner, None)
    return calls[0]


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("fedavg", {}),
        ("fedprox", {"mu": 0.5}),
        ("fedavgm", {"beta": 0.7}),
        ("fedavgm", {"server_learning_rate": 0.2, "nesterov": True}),
        ("scaffold", {"control": "start"}),
        ("fednova", {"mu": 0.3}),
        ("feddyn", {"alpha": 0.2}),
        ("moon", {"mu": 5.0, "temperature": 0.1}),
        ("local_only", {}),
    ],
)
def test_algorithm_gets_its_own_options(monkeypatch, setting, algorithm, options):
    common = {
        "weighting": "uniform",
        "client_execution": "vmap",
        "client_lanes": 2,
        "diagnostics": False,
        "dropout": 0.25,
        "batch_norm": "freeze",
    }
    fields = {"algorithm": algorithm, "algorithm_options": options}
    _, keywords = composed(monkeypatch, setting, **fields, **common)
    mean = keywords.pop("aggregation")
    assert mean.weight(jnp.array([0, 3, 5])).tolist() == [0, 1, 1]
    assert keywords == {
        **options,
        "execution": "vmap",
        "mesh": None,
        "lanes": 2,
        "diagnostics": False,
        "dropout": 0.25,
        "batch_norm": "freeze",
    }


def test_local_training(monkeypatch, setting):
    fields = {
        "batch_size": 7,
        "local_epochs": 3,
        "local_steps": 5,
        "clip_norm": 2.0,
        "drop_last": True,
        "client_optimizer": "sgd",
        "client_options": {"momentum": 0.5, "nesterov": True},
    }
    local, _ = composed(monkeypatch, setting, **fields)
    assert local[1:6] == (7, 3, 5, 2.0, True)
    assert local.schedule is None and local.local_schedule is None
    gradient, optimizer = np.float32([1.0]), local.at(0.5).optimizer
    update, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(update, [-0.75])  # 0.5 (1 + 0.5)


def test_schedules_over_rounds_and_within_one(monkeypatch, setting):
    def factors(schedule, at):
        return [float(schedule(x)) for x in at]

    fields = {"learning_rate_schedule": "cosine", "local_schedule": "cosine"}
    fields["local_schedule_steps"] = 100
    local, _ = composed(monkeypatch, setting, rounds=8, **fields)
    np.testing.assert_allclose(
        factors(local.schedule, (0, 2, 4, 8)),
        [1, (1 + np.sqrt(0.5)) / 2, 0.5, 0],
        atol=1e-7,
    )
    np.testing.assert_allclose(
        factors(local.local_schedule, (0.0, 0.25, 0.5, 1.5)),
        [1, (1 + np.sqrt(0.5)) / 2, 0.5, 0.5],
        atol=1e-7,
    )
    assert local.local_schedule_steps == 100
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
    options = {"clipped_mean": {"max_norm": 1.5}, "trimmed_mean": {"fraction": 0.25}}
    for name, value in expected.items():
        fields = {"aggregation": name, "aggregation_options": options.get(name, {})}
        _, keywords = composed(monkeypatch, setting, **fields)
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


@pytest.mark.parametrize("algorithm", ["scaffold", "feddyn"])
def test_no_client_twice_where_state_goes_together(algorithm):
    experiment.check(make_config(algorithm=algorithm).federated)
    fields = {"sampling": "with_replacement", "cohort_size": 20}
    with pytest.raises(UserError, match=rf"another for {algorithm}: a client"):
        experiment.check(make_config(algorithm=algorithm, **fields).federated)
    for other in ("moon", "local_only"):
        experiment.check(make_config(algorithm=other, **fields).federated)


def test_keywords_that_a_server_optimizer_does_not_take():
    options = {"server_options": {"momentum": 0.9}}
    config = make_config(algorithm="fedopt", algorithm_options=options)
    with pytest.raises(UserError, match="'momentum': optax.adam takes no such"):
        experiment.check(config.federated)


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

    # Twelve clients, of which two own anything.
    few = data._replace(offsets=np.repeat([0, 4, 9], [1, 5, 7]).astype(np.int32))
    config = make_config(sampling="by_examples")
    with pytest.raises(UserError, match="only 2 of 12 clients .*cohort_size = 3: low"):
        experiment.make_sampler(config.federated, few)

    trace = np.zeros((2, 12), bool)
    trace[0, :3] = trace[1, 5:9] = True
    np.save(tmp_path / "trace.npy", trace)
    fields = {
        "sampling": "availability",
        "sampling_options": {"file": str(tmp_path / "trace.npy")},
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
    config = make_config(sampling="availability", sampling_options={"file": str(file)})
    with pytest.raises(UserError, match=says):
        experiment.make_sampler(config.federated, data)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {
                "partition": "dirichlet_balanced",
                "partition_options": {"alpha": 0.5, "min_examples": 4},
            },
            lambda d: partition.dirichlet_balanced(d.labels, 12, 0.5, 0, 4),
        ),
        (
            {"partition": "shards", "partition_options": {"shards_per_client": 3}},
            lambda d: partition.shards(d.labels, 12, 0, 3),
        ),
        (
            {"partition": "quantity_skew", "partition_options": {"alpha": 2.0}},
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
    monkeypatch.setattr(simulate.evaluation, "metrics", pretend)
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


def test_a_run_of_the_version_before_goes_on(tmp_path):
    """Its records name the options of every choice as fields."""
    options = {"mu": 0.5}
    fields = {"algorithm": "fedprox", "algorithm_options": options, "run": "a"}
    simulate.simulate(make_config(rounds=1, **fields), tmp_path)
    folder = tmp_path / "federated" / "a"
    old = {"prox_mu": 0.5, "moon_mu": 1.0, "server_learning_rate": 0.0}
    old |= {"server_options": {}, "trimmed_fraction": 0.1, "availability_file": ""}
    old |= {"alpha": 0.1, "min_examples": 5, "shards_per_client": 2}
    for file, section in (
        (folder / "run.json", "config"),
        (folder / "checkpoints" / "identity.json", "identity"),
    ):
        record = json.loads(file.read_text())
        federated = record[section]["federated"]
        for choice in ("algorithm", "aggregation", "partition", "sampling"):
            del federated[f"{choice}_options"]
        federated |= old
        file.write_text(json.dumps(record))
    read = run_files.read_config(folder)["federated"]
    assert read["algorithm_options"] == options
    assert read["partition_options"] == {"alpha": 0.1, "min_examples": 5}
    assert simulate.simulate(make_config(rounds=2, **fields), tmp_path)["step"] == 2
    fields["algorithm_options"] = {"mu": 0.25}
    with pytest.raises(CheckpointMismatch, match=r"options\.mu is 0\.5 there"):
        simulate.simulate(make_config(rounds=3, **fields), tmp_path)


def test_an_algorithm_of_ones_own(tmp_path, setting):
    """By the path of its file; as FedAvg it does what that does."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from gptfl_jax.fl import algorithms\n"
        "def half(learner, local, *, share: float = 0.5, **options):\n"
        '    """Half: of FedAvg."""\n'
        "    return algorithms.fedavg(learner, local, **options)\n"
    )
    fields = {"algorithm": str(file), "algorithm_options": {"share": 1}}
    mine = simulate.simulate(make_config(rounds=1, **fields), tmp_path)
    assert (tmp_path / "federated" / "mine-random-s0").is_dir()
    expected = simulate.simulate(make_config(rounds=1), tmp_path, setting)
    assert mine["accuracy"] == expected["accuracy"]
    with pytest.raises(ConfigError, match="mine.py takes no such option; it takes sha"):
        make_config(algorithm=str(file), algorithm_options={"beta": 1})
