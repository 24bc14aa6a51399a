"""Stages 1 and 2 in a few lines, against steps worked out in numpy."""

import re

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import gptfl_jax as gf
from generate import samples
from gptfl_jax import configuration, progress, training
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.errors import UserError


class Linear(nn.Module):
    """A layer: compiled in no time."""

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs.reshape(len(inputs), -1))


def test_central_training_equals_steps_of_ones_own(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_IN_NOTEBOOK", True)  # there is a bar
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120).astype(np.int32)
    inputs = rng.normal(size=(120, 4)).astype(np.float32)
    federation = gf.federate(inputs, labels, owner=np.arange(120) % 3)
    data = Dataset(inputs, labels, ("0", "1", "2"))
    sgd = optax.sgd(0.1)
    trained = gf.train(
        data,
        Linear(),
        epochs=2,
        batch_size=120,
        optimizer=sgd,
        like=federation,
        progress=False,
    )
    assert capsys.readouterr().err == ""  # but none is asked for
    learner = training.make_learner(Linear(), training.example_of(inputs))
    key = jax.random.fold_in(jax.random.key(0), 2)
    params = learner.init(jax.random.fold_in(key, 0))["params"]["Dense_0"]
    kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
    for _ in range(2):
        logits = inputs @ kernel + bias
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = (p - np.eye(3)[labels]) / 120
        kernel = kernel - 0.1 * inputs.T @ gradient
        bias = bias - 0.1 * gradient.sum(0)
    found = trained.variables["params"]["Dense_0"]
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="they must be the same"):
        gf.train(data._replace(class_names=("a", "b", "c")), epochs=1, like=federation)


def test_the_function_of_the_page(repository):
    page = (repository / "docs/how-to/own-generator.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (block,) = [block for block in blocks if "def generator(" in block]
    like = gf.federate(np.zeros((1, 32, 32, 3), np.uint8), [0], owner=[0])
    names = {
        "gf": gf,
        "draw": lambda prompts, noise: 100 * (np.asarray(noise) > 0).astype(np.uint8),
        "prompts": {"0": ["a cat"]},
        "federation": like,
    }
    exec(block, names)
    pictures = names["synthetic"].inputs
    assert pictures.shape == (100, 32, 32, 3)
    assert len(np.unique(pictures, axis=0)) == 100  # each by a key of its own


def test_generated_samples_depend_on_their_number_only():
    def draw(texts, key, strength):
        def picture(text, key):
            noise = jax.random.randint(key, (8, 8, 3), 0, 256, "uint8")
            return np.asarray(noise) // 2 + strength * (text == "a dog")

        return np.stack([picture(*each) for each in zip(texts, key, strict=True)])

    prompts = {"cat": ["a cat", "the cat"], "dog": ["a dog"]}
    options = {"strength": np.uint8(100), "progress": False}
    data = gf.generate(draw, prompts, 5, batch_size=4, **options)
    assert data.class_names == ("cat", "dog")
    np.testing.assert_array_equal(data.labels, [0] * 5 + [1] * 5)
    assert data.inputs.shape == (10, 8, 8, 3)
    assert data.inputs[5:].min() >= 100 > data.inputs[:5].min()
    whole = gf.generate(draw, prompts, 7, batch_size=64, **options)
    np.testing.assert_array_equal(whole.inputs[:5], data.inputs[:5])
    np.testing.assert_array_equal(whole.inputs[7:12], data.inputs[5:])
    like = gf.federate(
        np.zeros((2, 4, 4, 1), np.uint8),
        [0, 1],
        owner=[0, 1],
        class_names=["dog", "cat"],
    )
    small = gf.generate(draw, prompts, 2, like=like, **options)
    assert small.inputs.shape == (4, 4, 4, 1) and small.class_names == ("dog", "cat")
    with pytest.raises(UserError, match="takes those of dog, cat"):
        gf.generate(draw, {"cow": ["a cow"]}, 1, like=like, **options)


def test_samples_are_those_of_the_program():
    seen = []

    def draw(texts, key):
        seen.extend(zip(texts, jax.random.key_data(key).tolist(), strict=True))
        return np.zeros((len(texts), 8, 8, 1), np.uint8)

    prompts = {name: [f"{i} {name}s" for i in range(9)] for name in ("cat", "dog")}
    gf.generate(draw, prompts, 6, seed=3, progress=False)
    config = configuration.default_config("prompts", "generate")
    config.seed = 3
    planned = samples.plan(
        config, prompts, {"cat": 6, "dog": 6}, [{"guidance": 1.0}], ".png"
    )
    planned.sort(key=lambda sample: sample.file)
    assert seen == [(sample.prompt, [0, sample.seed]) for sample in planned]
