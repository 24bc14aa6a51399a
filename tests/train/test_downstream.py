import itertools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import chex
import jax
import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from federated import starts
from gptfl_jax import (
    artifacts,
    central_training,
    configuration,
    devices,
    evaluation,
    training,
)
from gptfl_jax.artifacts import CheckpointMismatch
from gptfl_jax.data import sources
from gptfl_jax.errors import UserError
from gptfl_jax.interruption import Interrupted
from gptfl_jax.released import torch_weights
from train import downstream, training_data


def make_config(**settings):
    config = configuration.default_config("data", "model", "train")
    config.model.options = {"width": 8, "depth": 1}
    config.train.update(
        {
            "data": "real",
            "epochs": 4,
            "batch_size": 100,
            "learning_rate": 0.01,
            "checkpoint_every": 2,
            **settings,
        }
    )
    configuration.validate(config)
    return config


def metrics_of(workdir, drop=("seconds",)):
    lines = artifacts.read_metrics(workdir / "pretrain" / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in drop} for line in lines]


def weights_of(workdir, config, step=None):
    """The variables of a checkpoint, read as a later stage does."""
    data = training_data.load(config, workdir)
    template = downstream.make_learner(config, data).init(jax.random.key(9))
    folder = workdir / "pretrain" / "checkpoints"
    variables = artifacts.restore_checkpoint(
        folder, {"variables": template}, step=step
    )["variables"]
    return jax.tree.map(np.asarray, variables)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """The workdir of an uninterrupted run of `make_config()`."""
    workdir = tmp_path_factory.mktemp("finished")
    downstream.run(make_config(), workdir)
    return workdir


def test_a_class_of_one_example_has_none_to_hold_out(tmp_path):
    for label in range(10):
        path = tmp_path / f"synthetic/{label}_train_0_0.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(np.full((8, 8), label, np.uint8)).save(path)
    config = make_config(data="synthetic")
    with pytest.raises(UserError, match="validation_fraction = 0.1: takes 0 while no"):
        training_data.load(config, tmp_path)
    config.train.validation_fraction = 0.0
    assert len(training_data.load(config, tmp_path).train.labels) == 10


def test_the_digits_are_learned_and_measured(finished):
    config = make_config()
    lines = metrics_of(finished)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["accuracy"] > 0.8 > 0.5 > lines[-1]["train_loss"] / 2
    assert lines[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)
    # 13 steps an epoch: 1,275 of the 1,415 examples, the rest is for validation.
    data = training_data.load(config, finished)
    assert (len(data.train.labels), len(data.validation.labels)) == (1275, 140)
    halfway = 0.01 * (1 + np.cos(np.pi * 26 / 52)) / 2
    assert lines[1]["learning_rate"] == pytest.approx(halfway, rel=1e-5)
    # The checkpoint is of the weights that were measured.
    learner = downstream.make_learner(config, data)
    for step, line in (
        (None, lines[-1]),
        (
            "best",
            max(lines, key=lambda line: (line["validation_accuracy"], line["step"])),
        ),
    ):
        variables = weights_of(finished, config, step)
        result = evaluation.evaluate(
            learner, variables, data.test.inputs, data.test.labels, 10
        )
        assert result.accuracy == line["accuracy"]
        assert result.macro_f1 == pytest.approx(line["macro_f1"])
        assert result.loss == pytest.approx(line["loss"], rel=1e-5)
    record = json.loads((finished / "pretrain" / "run.json").read_text())
    assert record["config"]["train"]["learning_rate"] == 0.01


@pytest.mark.parametrize("which", ["last", "best"])
def test_stage_3_starts_from_the_checkpoint_it_asks_for(finished, which):
    config = configuration.default_config("data", "model", "train", "federated")
    config.federated.init = "synthetic"
    config.federated.init_checkpoint = which
    data = training_data.load(make_config(), finished)
    learner = downstream.make_learner(make_config(), data)
    weights = starts.initial_weights(config, finished, learner)
    step = {"last": None, "best": "best"}[which]
    chex.assert_trees_all_equal(weights, weights_of(finished, make_config(), step))


def test_training_starts_from_released_weights(finished, tmp_path, capsys):
    released = weights_of(finished, make_config())
    head = released["params"]["classifier"]
    head["kernel"], head["bias"] = head["kernel"][:, :3], head["bias"][:3]
    file = tmp_path / "released.safetensors"
    save_file(torch_weights.variables_to_torch(released), file)
    config = make_config(epochs=1, learning_rate=1e-9)
    config.model.weights = str(file)
    downstream.run(config, tmp_path)
    said = f"initial weights: {file}, but for the last layer, which is random"
    assert said in capsys.readouterr().out
    begun = weights_of(tmp_path, make_config())["params"]
    for layer in ("conv0", "norm0"):
        chex.assert_trees_all_close(begun[layer], released["params"][layer], atol=1e-6)
    # The file may move; another one is another run.
    config.model.weights = str(file.rename(tmp_path / "moved.safetensors"))
    downstream.run(config, tmp_path)
    save_file({"conv0.bias": head["bias"]}, config.model.weights)
    with pytest.raises(CheckpointMismatch, match="content of the weights"):
        downstream.run(config, tmp_path)


@pytest.mark.long
def test_a_head_alone_is_trained_on_released_features(finished, tmp_path):
    released = weights_of(finished, make_config())
    file = tmp_path / "released.safetensors"
    save_file(torch_weights.variables_to_torch(released), file)
    for epochs in (1, 2):  # the second run goes on from the first
        config = make_config(trainable="head", schedule="constant", epochs=epochs)
        config.model.weights = str(file)
        downstream.run(config, tmp_path)
    assert [line["step"] for line in metrics_of(tmp_path)] == [1, 2]
    params = weights_of(tmp_path, make_config())["params"]
    heads = [each.pop("classifier")["bias"] for each in (released["params"], params)]
    assert np.abs(heads[0] - heads[1]).max() > 1e-3
    chex.assert_trees_all_equal(params, released["params"])


@pytest.mark.parametrize("kill_at", [1, 3, 4])
def test_a_run_that_is_cut_short_ends_the_same(
    tmp_path, monkeypatch, finished, kill_at
):
    write = artifacts.Metrics.write

    def killed(self, step, **scalars):
        write(self, step, **scalars)
        if step == kill_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artifacts.Metrics, "write", killed)
        downstream.run(make_config(), tmp_path)
    downstream.run(make_config(), tmp_path)
    assert metrics_of(tmp_path) == metrics_of(finished)
    for step in (None, "best"):
        chex.assert_trees_all_equal(
            weights_of(tmp_path, make_config(), step),
            weights_of(finished, make_config(), step),
        )


def test_examples_sent_ahead_of_the_steps_give_the_same(finished, tmp_path, capsys):
    config = make_config(data_placement="stream")
    downstream.run(config, tmp_path)
    lines = metrics_of(tmp_path, drop=("seconds", "seconds_waited"))
    assert lines == metrics_of(finished)
    chex.assert_trees_all_equal(
        weights_of(tmp_path, config), weights_of(finished, config)
    )
    waited = [line["seconds_waited"] for line in metrics_of(tmp_path)]
    assert len(waited) == 4 and min(waited) >= 0
    # A run may go on in either way.
    config.train.update({"data_placement": "auto"})
    downstream.run(config, tmp_path)
    assert "examples are kept on the device: 0.1 MB" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again(finished, capsys):
    before = (finished / "pretrain" / "metrics.jsonl").read_bytes()
    downstream.run(make_config(), finished)
    assert (finished / "pretrain" / "metrics.jsonl").read_bytes() == before
    out = capsys.readouterr().out
    assert "last (epoch 4): accuracy" in out and "advice" not in out


def test_what_comes_after_training():
    config = make_config()
    workdir = pathlib.Path("a b")
    assert downstream.then(config, workdir) == (
        "python -m federated.predict '--workdir=a b' --run=pretrain FILE ..."
    )
    sections = ("data", "model", "train", "federated", "compare")
    config = configuration.default_config(*sections)
    simulate = "python -m federated.simulate {same} --config.federated.init"
    assert downstream.then(config, workdir) == f"{simulate}=synthetic"
    config.train.data = "procedural"
    assert downstream.then(config, workdir) == f"{simulate}=procedural"
    config.compare.methods = {"fedavg": {}}
    config.train.run = "mine"
    assert downstream.then(config, workdir) == f"{simulate}=mine"
    config.train.data, config.train.run = "synthetic", ""
    assert downstream.then(config, workdir) == "python -m federated.compare {same}"


def test_a_classifier_no_better_than_a_constant_is_told_so(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "pretrain" / "metrics.jsonl"
    path.write_text(re.sub(r'"accuracy": [^,]*', '"accuracy": 0.12', path.read_text()))
    downstream.run(make_config(), tmp_path)
    test = sources.load("sklearn_digits").test
    most = np.bincount(test.labels).max() / len(test.labels)
    out = capsys.readouterr().out
    assert "advice: the classifier is right on 12.0% of the test set, and always" in out
    assert f"class on {most:.1%} (of 382 examples the difference may be luck). S" in out


def test_lost_and_damaged_lines_are_refused(tmp_path, finished):
    shutil.copytree(finished / "pretrain", tmp_path / "pretrain")
    file = tmp_path / "pretrain" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    with artifacts.Checkpoints(file.parent / "checkpoints", read_only=True) as saved:
        best = saved.best_step()
    damaged = lines[-1].replace('"accuracy": ', '"accuracy": "x", "was": ', 1)
    for kept, says in (
        (
            lines[:2],
            "metrics.jsonl ends at step 2, but there is a checkpoint of step 4",
        ),
        ([*lines[:-1], damaged], r"line 4 is not .*accuracy is not a number"),
        (lines[: best - 1] + lines[best:], rf"no line of epoch {best}|ends at step"),
    ):
        file.write_text("".join(kept))
        with pytest.raises(UserError, match=says):
            downstream.run(make_config(), tmp_path)


def test_checkpoints_of_another_run_are_refused(finished):
    config = make_config()
    config.model.options = {"width": 16, "depth": 1}
    with pytest.raises(UserError, match=r"model.options.width is 8 there and 16 here"):
        downstream.run(config, finished)
    with pytest.raises(UserError, match=r"train.learning_rate is 0.01 there"):
        downstream.run(make_config(learning_rate=0.1), finished)
    with pytest.raises(UserError, match=r"of another model: variables/params"):
        weights_of(finished, config)


def test_a_second_run_at_once_is_refused(finished):
    with (
        artifacts.lock(finished / "pretrain"),
        pytest.raises(UserError, match="in use"),
    ):
        downstream.run(make_config(), finished)


def test_the_seed_decides(tmp_path, finished):
    config = make_config(epochs=1)
    config.seed = 1
    downstream.run(config, tmp_path)
    assert (
        metrics_of(tmp_path)[0]["train_loss"] != metrics_of(finished)[0]["train_loss"]
    )


@pytest.mark.parametrize("validation_fraction", [0.0, 0.2])
def test_ctrl_c_between_two_tests(tmp_path, monkeypatch, capsys, validation_fraction):
    """The epoch that it saves has no line of metrics."""
    config = make_config(
        batch_size=2000,  # a step an epoch
        epochs=8,
        eval_every=3,
        schedule="constant",
        checkpoint_every=100,
        validation_fraction=validation_fraction,
    )

    def interrupted_in_epoch(number):
        asked = itertools.count(1)
        monkeypatch.setattr(
            downstream.interruption, "should_save", lambda: next(asked) == number
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    downstream.run(config, whole)
    for number, saved_after in ((3, 2), (3, 4), (2, 5)):
        interrupted_in_epoch(number)
        with pytest.raises(Interrupted, match=f"saved after epoch {saved_after} of 8"):
            downstream.run(config, broken)
    assert [line["step"] for line in metrics_of(broken)] == [3]
    # Fewer epochs end with the one that was saved: it is tested after all.
    monkeypatch.undo()
    ended = tmp_path / "ended"
    shutil.copytree(broken, ended)
    config.train.epochs = 5
    downstream.run(config, ended)
    assert [line["step"] for line in metrics_of(ended)] == [3, 5]
    assert "last (epoch 5): accuracy" in capsys.readouterr().out
    config.train.epochs = 8
    downstream.run(config, broken)
    assert metrics_of(broken) == metrics_of(whole)
    chex.assert_trees_all_equal(
        weights_of(broken, config, step=8), weights_of(whole, config, step=8)
    )


def test_divergence_stops_the_run(tmp_path):
    config = make_config(learning_rate=1e30, optimizer="sgd")
    with pytest.raises(UserError, match=r"training loss is \w+ in epoch 1: lower"):
        downstream.run(config, tmp_path)
    assert metrics_of(tmp_path) == []


def test_missing_synthetic_pictures_name_the_command(tmp_path):
    with pytest.raises(UserError, match="python -m generate.images"):
        downstream.run(make_config(data="synthetic"), tmp_path)


def write_synthetic(workdir, per_class=12):
    """Enlarged real digits in the place of generated ones: 32x32 RGB."""
    train = sources.load("sklearn_digits").train
    samples, files = [], {}
    for label, name in enumerate(train.class_names):
        rows = np.flatnonzero(train.labels == label)[:per_class]
        for index, row in enumerate(rows):
            file = f"{name}/{name}_{index:05d}.png"
            large = train.inputs[row].repeat(4, 0).repeat(4, 1).repeat(3, 2)
            path = workdir / "synthetic" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(large).save(path)
            files[file] = train.inputs[row]
            samples.append(artifacts.Sample(file, name, "", index, 7.5, "test"))
    artifacts.append_samples(workdir / "synthetic", samples)
    return files


def test_synthetic_real_and_both(tmp_path, capsys):
    files = write_synthetic(tmp_path)
    (tmp_path / "synthetic/3/3_00001.png").write_bytes(b"broken")
    config = make_config(data="synthetic", validation_fraction=0)
    data = training_data.load(config, tmp_path)
    assert "1 left out" in capsys.readouterr().out
    assert data.validation is None
    del files["3/3_00001.png"]
    # Conversion to 8x8 grey undoes the enlargement.
    np.testing.assert_array_equal(data.train.inputs, np.stack(list(files.values())))
    assert np.bincount(data.train.labels).tolist() == [12] * 3 + [11] + [12] * 6
    assert len(data.test.labels) == 382

    both = training_data.load(
        make_config(data="both", validation_fraction=0), tmp_path
    ).train
    assert len(both.labels) == 1415 + 119
    # Without validation data the best checkpoint is the last.
    config.train.epochs = 2
    downstream.run(config, tmp_path)
    out = capsys.readouterr().out
    assert "last (epoch 2)" in out and "best (epoch 2)" in out
    chex.assert_trees_all_equal(
        weights_of(tmp_path, config), weights_of(tmp_path, config, "best")
    )


def test_classes_without_synthetic_pictures_are_named(tmp_path, capsys):
    write_synthetic(tmp_path, per_class=2)
    lines = (tmp_path / "synthetic/manifest.jsonl").read_text().splitlines(True)
    kept = [line for line in lines if '"label": "7"' not in line]
    (tmp_path / "synthetic/manifest.jsonl").write_text("".join(kept))
    training_data.load(make_config(data="synthetic"), tmp_path)
    assert "no synthetic pictures of 7" in capsys.readouterr().out


def test_steps_in_a_loop_are_the_steps_one_by_one():
    config = make_config(batch_size=300, flip=True)
    data = training_data.load(config, pathlib.Path("unused"))
    learner = downstream.make_learner(config, data)
    # Not Adam: it would amplify rounding in the biases that instance norm makes void.
    optimizer = training.make_optimizer("sgd", 0.01)
    mesh = devices.for_steps(1)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    count = len(data.train.labels)
    order, advance, advance_on = central_training.make_epoch(
        learner, optimizer, key, count, 300, split
    )
    table = order(np.int32(3))
    assert table.shape == (5, 300)
    np.testing.assert_array_equal(np.sort(table[table >= 0]), np.arange(count))
    assert (table[-1] >= 0).sum() == count - 4 * 300
    assert (order(np.int32(4)) != table).any()

    examples = jax.tree.map(jax.numpy.asarray, (data.train.inputs, data.train.labels))

    def begin():
        state = training.init_state(learner, optimizer, jax.random.key(0))
        return state, jax.numpy.zeros(())

    looped = advance(begin(), examples, table, np.int32(0), 3)
    single = begin()
    for step in range(3):
        single = advance(single, examples, table, np.int32(step), 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        looped,
        single,
    )


# Devices and processes --------------------------------------------------------------

CONFIG_FILE = """
from gptfl_jax import configuration

def get_config(arg=""):
    config = configuration.default_config("data", "model", "train")
    config.model.options = {"width": 8, "depth": 1}
    config.train.data = "real"
    config.train.epochs = 2
    config.train.batch_size = 516
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.01
    config.train.crop_padding = 1
    config.train.flip = True
    return config
"""


def start(repository, tmp_path, workdir, *flags):
    path = tmp_path / "small.py"
    path.write_text(CONFIG_FILE)
    arguments = [f"--config={path}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [sys.executable, "-m", "train.downstream", *arguments],
        cwd=repository,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), (
        outputs
    )
    return outputs


@pytest.mark.long
def test_devices_and_processes_do_not_change_the_result(repository, tmp_path):
    # 516 rows a step are 65 on each of 8 devices, 4 of them padding.
    one = start(repository, tmp_path, tmp_path / "one", "--cpu_devices=1")
    finish(one)
    finish(start(repository, tmp_path, tmp_path / "eight", "--cpu_devices=8"))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    outputs = finish(
        *(
            start(
                repository,
                tmp_path,
                tmp_path / "two",
                "--cpu_devices=1",
                f"--coordinator_address={address}",
                "--num_processes=2",
                f"--process_id={process}",
            )
            for process in range(2)
        )
    )
    assert "last (epoch 2)" in outputs[0] and "last" not in outputs[1]
    expected = metrics_of(tmp_path / "one")
    for other in ("eight", "two"):
        lines = metrics_of(tmp_path / other)
        assert len(lines) == len(expected) == 2
        for line, reference in zip(lines, expected, strict=True):
            assert line == pytest.approx(reference, rel=1e-3)
        config = make_config()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            weights_of(tmp_path / other, config),
            weights_of(tmp_path / "one", config),
        )
