"""What notebooks call: equal to the programs, piece by piece replaceable."""

import functools
import json

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import gptfl_jax as gf
from federated import simulate
from gptfl_jax import configuration, exports, training
from gptfl_jax.data.datasets import Source
from gptfl_jax.description import Description
from gptfl_jax.errors import UserError
from gptfl_jax.fl import algorithms, client_rules, composition
from gptfl_jax.fl import rounds as rounds_of


class Linear(nn.Module):
    """A layer: compiled in no time."""

    classes: int = 3

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(self.classes)(inputs.reshape(len(inputs), -1))


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120).astype(np.int32)
    inputs = rng.normal(size=(120, 4)).astype(np.float32)
    inputs[:, :3] += 2 * np.eye(3, dtype=np.float32)[labels]
    return inputs, labels


@pytest.fixture(scope="module")
def federation(arrays):
    inputs, labels = arrays
    owner = np.array(["ann", "bob", "eve"])[np.arange(120) % 3]
    return gf.federate(inputs, labels, owner=owner, test=(inputs, labels))


def test_the_program_computes_the_same(tmp_path):
    config = configuration.default_config("data", "model", "federated")
    config.seed = 3
    config.model.options = {"width": 4, "depth": 1}
    config.federated.partition = "dirichlet"
    config.federated.partition_options = {"alpha": 0.5}
    config.federated.num_clients = 20
    config.federated.algorithm = "fedprox"
    config.federated.algorithm_options = {"mu": 0.1}
    config.federated.rounds = 3
    config.federated.cohort_size = 4
    config.federated.batch_size = 16
    config.federated.client_learning_rate = 0.2
    config.federated.eval_every = 2
    simulate.simulate(config, tmp_path, quiet=True)
    file = tmp_path / "federated" / "fedprox-random-s3" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]

    federation = gf.federate(
        gf.load("sklearn_digits"),
        partition="dirichlet",
        num_clients=20,
        seed=3,
        alpha=0.5,
    )
    run = gf.simulate(
        federation,
        "convnet",
        "fedprox",
        rounds=3,
        cohort_size=4,
        local=gf.LocalTraining(optax.sgd(0.2), batch_size=16),
        seed=3,
        model_options={"width": 4, "depth": 1},
        algorithm_options={"mu": 0.1},
        eval_every=2,
        progress=False,
    )
    assert run.name == "FedProx"
    assert list(run.metrics.index) == [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        row = run.metrics.loc[line["step"]].dropna()
        there = {k: v for k, v in line.items() if v is not None}
        assert set(row.index) == set(there) - {"step", "seconds"}
        for name, value in row.items():
            assert value == pytest.approx(line[name], rel=1e-5, abs=1e-6), name


def test_owners_by_name_and_classes_by_default(federation, arrays):
    inputs, labels = arrays
    assert federation.num_clients == 3
    assert federation.class_names == ("0", "1", "2")
    assert federation.mean == federation.std == ()
    np.testing.assert_array_equal(federation.summary().sizes, [40, 40, 40])
    np.testing.assert_array_equal(federation.data.inputs[:40], inputs[::3])
    np.testing.assert_array_equal(federation.data.labels[40:80], labels[1::3])
    pictures = np.zeros((6, 4, 4, 1), np.uint8)
    grey = gf.federate(pictures, [0, 1] * 3, partition="iid", num_clients=2)
    assert grey.mean == pytest.approx([0.449], abs=1e-3)
    assert grey.test is None
    own = gf.federate(
        pictures, [0, 1] * 3, owner=[0, 0, 1, 1, 2, 2], mean=[0.5], std=[0.25]
    )
    assert (own.mean, own.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "who owns the examples"),
        ({"partition": "dirichlet"}, "num_clients is missing"),
        ({"owner": [0] * 120, "num_clients": 2}, "num_clients = 2: goes with a part"),
        ({"partition": "dirichlte", "num_clients": 2}, "did you mean dirichlet"),
        (
            {"partition": "dirichlet", "num_clients": 2, "alhpa": 1},
            "did you mean .*alpha",
        ),
        (
            {"partition": "dirichlet", "num_clients": 2, "alpha": 0},
            "takes a number > 0",
        ),
    ],
)
def test_federations_that_cannot_be(arrays, arguments, says):
    with pytest.raises(UserError, match=says):
        gf.federate(*arrays, **arguments)
    with pytest.raises(UserError, match="labels is missing"):
        gf.federate(arrays[0])
    for labels in map(np.array, (["cat", "dog"], [0.0, 1.5])):
        with pytest.raises(
            UserError, match="labels are (<U3|float64): takes whole num"
        ):
            gf.federate(np.zeros((2, 4)), labels, owner=[0, 1])


def test_a_notebook_shows_no_arrays(federation):
    of_test = "Dataset(120 examples of float32[4], 3 classes)"
    assert repr(federation) == f"Federation({federation.summary()}; test={of_test})"
    source = Source(federation.test, federation.test)
    assert repr(source) == f"Source(train={of_test}, test={of_test})"
    run = run_of(federation)
    accuracy = run.metrics.accuracy[2]
    assert repr(run) == f"Run(FedAvg, 2 rounds, accuracy {accuracy:.4f})"


def run_of(federation, *arguments, **keywords):
    local = gf.LocalTraining(optax.sgd(0.1), batch_size=20)
    return gf.simulate(
        *(federation, Linear(), *arguments),
        **({"rounds": 2, "local": local, "progress": False} | keywords),
    )


def test_algorithms_of_ones_own(federation, tmp_path):
    def half(learner, local, **options):
        """Half: half of the mean update."""
        rule = client_rules.plain_rule(learner)
        return composition.compose(rule, local, optax.sgd(0.5), **options)

    by_function = run_of(federation, half)
    assert by_function.name == "Half"
    partial = functools.partial(algorithms.fedavgm, beta=0.0, server_learning_rate=0.5)
    file = tmp_path / "half.py"
    file.write_text(
        "import optax\n"
        "from gptfl_jax.fl import client_rules, composition\n\n"
        "def half(learner, local, *, rate: float = 1.0, **options):\n"
        '    """HalfAgain: of a file."""\n'
        "    rule = client_rules.plain_rule(learner)\n"
        "    return composition.compose(rule, local, optax.sgd(rate), **options)\n"
    )
    by_file = run_of(federation, str(file), algorithm_options={"rate": 0.5})
    assert by_file.name == "HalfAgain"
    for other in (run_of(federation, partial), by_file):
        np.testing.assert_allclose(
            other.metrics.accuracy, by_function.metrics.accuracy, atol=1e-12
        )
        np.testing.assert_allclose(
            other.metrics.loss, by_function.metrics.loss, rtol=1e-6
        )


def test_a_run_goes_on_from_another(federation, arrays, capsys):
    first = run_of(federation, rounds=1)
    second = run_of(federation, init=first, rounds=1)
    assert second.metrics.loss[0] == pytest.approx(first.metrics.loss[1], rel=1e-6)
    again = run_of(federation, init=first.variables, rounds=1)
    assert again.metrics.loss[1] == second.metrics.loss[1]
    assert run_of(federation, init=first.classifier, rounds=1).metrics.equals(
        second.metrics
    )
    assert not capsys.readouterr().out
    nothing = jax.tree.map(np.zeros_like, first.variables)  # names class 0 always
    start = first.classifier._replace(variables=nothing)
    run_of(federation, init=start, rounds=1, progress=True)
    zeros = np.mean(arrays[1] == 0)
    told = capsys.readouterr().out
    assert f"advice: init is right on {zeros:.1%} of the test set, and always" in told
    other = federation._replace(class_names=("0", "1", "cat"))
    for start in (first, first.classifier):
        with pytest.raises(UserError, match="init tells 0, 1, 2, and the .* 0, 1, cat"):
            run_of(other, init=start)
    assert len(run_of(other, init=first.variables, rounds=1).metrics) == 2
    labels = arrays[1]
    accuracy = (second.predict(arrays[0]) == labels).mean()
    assert accuracy == pytest.approx(second.metrics.accuracy[1])


def test_a_run_starts_from_exported_weights(federation, arrays, tmp_path):
    def simulated(model="logistic_regression", init=None):
        return gf.simulate(federation, model, rounds=1, progress=False, init=init)

    kernel = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    head = {"kernel": kernel, "bias": np.zeros(3, np.float32)}
    about = Description(
        *("logistic_regression", {}, federation.class_names, federation.example)
    )
    exports.write(tmp_path / "w", about, {"params": {"classifier": head}})
    powers = np.exp(arrays[0] @ kernel)
    right = powers[np.arange(120), arrays[1]] / powers.sum(1)
    run = simulated(init=str(tmp_path / "w"))
    assert run.metrics.loss[0] == pytest.approx(-np.log(right).mean(), rel=1e-5)
    with pytest.raises(UserError, match=r"as an object.*give it by name"):
        simulated(Linear(), str(tmp_path / "w"))
    with pytest.raises(UserError, match=r"none\.pth: there is no such file"):
        simulated(init="none.pth")


def test_clients_alone_are_tested_together(federation, arrays, capsys):
    run = run_of(federation, "local_only", cohort_size=2, rounds=1, progress=True)
    assert "run.classifier has the initial weights" in capsys.readouterr().out
    own = [row for known, row in run.state.own.rows.values() if known]
    assert len(own) == 2
    right = [
        (run.classifier._replace(variables=each).predict(arrays[0]) == arrays[1]).mean()
        for each in own
    ]
    initial = (run.predict(arrays[0]) == arrays[1]).mean()
    assert run.metrics.accuracy.tolist() == pytest.approx([initial, np.mean(right)])


def test_without_a_test_set_nothing_is_tested(federation):
    run = run_of(federation._replace(test=None))
    assert "accuracy" not in run.metrics and "train_loss" in run.metrics


def test_updates_that_are_all_nan_end_the_run(federation):
    local = gf.LocalTraining(optax.sgd(float("nan")), batch_size=20)
    with pytest.raises(UserError, match="round 1: the updates of all clients were NaN"):
        run_of(federation, local=local)


def test_curves_of_runs(federation):
    runs = [run_of(federation), run_of(federation, "fedavgm", name="with momentum")]
    axes = gf.plot(runs)
    curves = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(curves) == ["FedAvg", "with momentum"]
    np.testing.assert_array_equal(curves["FedAvg"], runs[0].metrics.accuracy)
    same = runs[0].plot("train_loss", axes=axes)
    assert same is axes
    assert len(axes.get_lines()[2].get_ydata()) == 2  # round 0 trained nothing
    with pytest.raises(UserError, match="metric 'acuracy': takes one of"):
        gf.plot(runs, "acuracy")


def test_rounds_stop_and_go_on(federation):
    learner = training.make_learner(Linear(), federation.example)
    local = gf.LocalTraining(optax.sgd(0.1), batch_size=20)
    made = algorithms.scaffold(learner, local)
    start = made.init(learner.init(jax.random.key(0)), 3)
    key = jax.random.key(5)

    def cohort(done):
        return jax.numpy.array([done % 3, (done + 1) % 3], np.int32)

    def go(state, **options):
        return list(
            rounds_of.rounds(
                made,
                state,
                jax.tree.map(jax.numpy.asarray, federation.data),
                cohort,
                key,
                5,
                observe=lambda number, state, last: (state, last),
                **options,
            )
        )

    whole = go(start)
    assert [done.number for done in whole] == [0, 1, 2, 3, 4, 5]
    assert [done.observed[1] for done in whole] == [False] * 5 + [True]
    assert whole[0].metrics is None
    by_hand = start
    for done in range(5):
        by_hand, _ = made.round(
            by_hand, federation.data, cohort(done), jax.random.fold_in(key, done)
        )
    for found in (
        whole,
        go(go(start, stop=iter([False, True]).__next__)[-1].observed[0], done=2),
    ):
        jax.tree.map(
            np.testing.assert_array_equal,
            found[-1].observed[0].variables,
            by_hand.variables,
        )
    stopped = go(start, stop=iter([False, True]).__next__)
    assert [done.number for done in stopped] == [0, 1, 2]
    assert stopped[-1].observed[1]
