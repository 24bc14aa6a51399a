"""What --dry_run says of stage 2."""

import math

import jax
import numpy as np
import pytest

from gptfl_jax import central_training, configuration, devices
from gptfl_jax.data import picture_cache, sources
from train import downstream, training_data


def make_config(**train):
    config = configuration.default_config("data", "model", "generate", "train")
    config.model.options = {"width": 4, "depth": 1}
    config.generate.samples_per_class = "2x"
    config.train.update({"epochs": 3, "batch_size": 16, "eval_every": 2, **train})
    configuration.validate(config)
    return config


@pytest.mark.parametrize("data", ["synthetic", "both"])
def test_a_plan_has_the_sizes_of_the_run(data, tmp_path):
    config = make_config(data=data, validation_fraction=0.1)
    plan = downstream.plan(config, tmp_path)
    real = len(sources.load("sklearn_digits").train.labels)
    count = real * (2 if data == "synthetic" else 3)
    facts = dict(plan.facts)
    assert facts[""] == "synthetic: not made yet, counted as they will be"
    held_out = int(facts["data"].split(" training, ")[1].split()[0])
    assert held_out == pytest.approx(0.1 * count, abs=5)  # of each class, rounded
    steps, tests = plan.work
    assert steps.times == 3 * math.ceil((count - held_out) / 16)
    assert tests.times * 16 == 2 * (held_out + 382)  # epochs 2 and 3
    assert not list(tmp_path.iterdir())

    outlined, _ = training_data.outlined(config, tmp_path)
    learner = downstream.make_learner(config, outlined)
    optimizer, _ = downstream.make_optimizer(config, 10)
    state = central_training.initial_state(learner, optimizer, jax.random.key(0), 16)
    resident = {each.name: each.arrays for each in plan.resident}
    same = jax.tree.map(
        lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype),
        state,
        resident["training state"],
    )
    assert jax.tree.all(same)
    _, labels = resident["training examples"]
    assert labels.shape == (count - held_out,)


def test_a_plan_counts_the_classes_that_prompts_are_for(tmp_path):
    config = make_config(data="synthetic", validation_fraction=0.0)
    with config.unlocked():
        config.prompts = configuration.default_config("prompts").prompts
    names = sources.load("sklearn_digits").train.class_names
    config.prompts.classes = (names[3], names[8].upper())
    config.generate.samples_per_class = {names[3]: 4, names[8]: 3}
    facts = dict(downstream.plan(config, tmp_path).facts)
    assert facts["data"].startswith("7 training, ")


def test_the_first_of_each_class():
    """Of classes 2, 0, 2, 2, 0, 1 the first two of each are all but the third 2."""
    labels = np.array([2, 0, 2, 2, 0, 1], np.int32)
    chosen = training_data._first(labels, 2)
    np.testing.assert_array_equal(chosen, [True, True, True, False, True, True])


def test_procedural_examples_are_outlined_as_they_are(tmp_path):
    config = make_config(
        data="procedural", procedural_classes=3, procedural_per_class=10
    )
    config.train.validation_fraction = 0.2
    outlined, origin = training_data.outlined(config, tmp_path)
    data = training_data.load(config, tmp_path)
    assert origin == ["procedural: drawn when they are needed"]
    for ours, theirs in zip(
        (outlined.train, outlined.validation, outlined.test),
        (data.train, data.validation, data.test),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.inputs.shape == theirs.inputs.shape
        assert ours.num_classes == theirs.num_classes == 3
    assert len(data.train.labels) == 24 and len(data.test.labels) == 3
    assert downstream.run_name(config) == "procedural"


def test_a_plan_of_streamed_examples_has_those_of_some_steps(tmp_path):
    config = make_config(data="real", data_placement="stream")
    plan = downstream.plan(config, tmp_path)
    (sent,) = (each for each in plan.resident if each.name == "training examples")
    assert sent.arrays.inputs.shape == (1, 16, 8, 8, 1) and sent.copies == 4
    assert dict(plan.facts)["data"].endswith("streamed ahead of the steps")


@pytest.mark.parametrize(("free_mb", "streamed"), [(4.0, False), (1.0, True)])
def test_pictures_in_files_are_planned_as_they_would_be_placed(
    free_mb, streamed, tmp_path, monkeypatch
):
    # 2,830 pictures of 64 bytes: half of either is enough for an array of them, and a
    # sixteenth of the first for rows in files.
    monkeypatch.setattr(picture_cache, "BLOCK", 512)
    monkeypatch.setattr(devices, "free_memory", lambda mesh=None: int(free_mb * 1e6))
    config = make_config(data="synthetic", validation_fraction=0.0)
    plan = downstream.plan(config, tmp_path)
    resident = {each.name: each for each in plan.resident}
    assert ("streamed" in dict(plan.facts)["data"]) == streamed
    training = resident["training examples"]
    assert training.copies == (4 if streamed else 1)
    assert ("data_placement" in training.remedy) != streamed
    # The real digits come in an array.
    assert resident["test examples"].arrays[0].shape == (382, 8, 8, 1)


def test_the_steps_of_a_plan_are_those_of_the_run(tmp_path):
    config = make_config(data="real")
    data, _ = training_data.outlined(config, tmp_path)
    learner = downstream.make_learner(config, data)
    optimizer, _ = downstream.make_optimizer(config, 10)
    key = jax.random.key(1)
    inputs, labels = (
        np.asarray(x)[:16] for x in (data.train.inputs, data.train.labels)
    )
    begin = central_training.initial_state(learner, optimizer, key, 16)
    example = jax.ShapeDtypeStruct(inputs.shape[1:], inputs.dtype)
    lowered = central_training.lower(learner, optimizer, example, 16, 16, key)
    order = np.arange(16, dtype=np.int32)[None]
    carry = begin, np.float32(0)
    (after, total) = lowered.steps.compile()(
        carry, (inputs, labels), order, np.int32(0)
    )
    begin = central_training.initial_state(learner, optimizer, key, 16)
    (epoch,) = central_training.fit(
        learner, optimizer, begin, inputs, labels, key, 1, 16
    )
    np.testing.assert_allclose(total / 16, epoch.loss, rtol=1e-6)
    assert int(after.step) == int(epoch.state.step) == 1
