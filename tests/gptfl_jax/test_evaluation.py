"""Metrics against scikit-learn, and evaluations split over devices."""

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from gptfl_jax import devices, evaluation, training
from gptfl_jax.data import stored_rows


class Given(nn.Module):
    """Predicts what the inputs say."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        return 4 * jax.nn.one_hot(inputs[:, 0], 6) + self.param(
            "zero", nn.initializers.zeros, ()
        )


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_metrics_are_those_of_sklearn(batch_size):
    rng = np.random.default_rng(0)
    # Class 4 is predicted but never true, class 5 true but never predicted; class 3
    # is neither.
    truth = rng.choice([0, 1, 2, 5], 50).astype(np.int32)
    guess = np.where(rng.random(50) < 0.6, truth % 5, rng.choice([0, 1, 2, 4], 50))
    inputs = guess[:, None].astype(np.int32)
    learner = training.make_learner(Given(), training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    result = evaluation.evaluate(learner, variables, inputs, truth, 6, batch_size)
    assert result.accuracy == accuracy_score(truth, guess)
    assert result.macro_f1 == f1_score(truth, guess, average="macro")
    probabilities = jax.nn.softmax(learner.predict(variables, inputs))
    np.testing.assert_allclose(
        result.loss, log_loss(truth, probabilities, labels=range(6)), rtol=1e-5
    )


class GivenLogits(nn.Module):
    """Predicts the first frame of a clip."""

    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        return inputs[0][:, 0] + self.param("zero", nn.initializers.zeros, ())


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_clip_in_segments_is_told_by_their_mean_probability(batch_size):
    # Of the first clip two unsure segments outweigh one that is sure of another class;
    # of the second only one is there; the third has one of each.
    shares = np.float32(
        [
            [[0.6, 0.4], [0.6, 0.4], [0.05, 0.95]],
            [[0.9, 0.1], [0.01, 0.99], [0.01, 0.99]],
            [[0.2, 0.8], [0.7, 0.3], [0.9, 0.1]],
        ]
    )
    lengths = np.int32([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    inputs = np.log(shares)[:, :, None], lengths
    example = (np.zeros((1, 2), np.float32), np.int32(1))
    learner = training.make_learner(GivenLogits(), example)
    variables = learner.init(jax.random.key(0))
    result = evaluation.evaluate(
        learner, variables, inputs, np.int32([1, 0, 0]), 2, batch_size
    )
    means = np.array([1.75 / 3, 0.9, 0.45])  # of the true class
    np.testing.assert_allclose(result.loss, -np.log(means).mean(), rtol=1e-6)
    assert result.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("guess", [0, 2])
def test_macro_f1_of_one_class_is_that_of_sklearn(guess):
    """All examples are of class 2, and predicted right or wrong."""
    inputs, truth = np.full((5, 1), guess, np.int32), np.full(5, 2, np.int32)
    learner = training.make_learner(Given(), training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    result = evaluation.evaluate(learner, variables, inputs, truth, 6)
    assert result.accuracy == accuracy_score(truth, inputs[:, 0])
    assert result.macro_f1 == f1_score(truth, inputs[:, 0], average="macro")


def test_a_classifier_of_one_class_is_certain():
    counts = evaluation.Counts(np.array([[5]]), np.float32(0.0))
    assert evaluation.metrics(counts) == evaluation.Metrics(0.0, 1.0, 1.0)
    nobody = evaluation.Counts(np.array([[0]]), np.float32(0.0))
    assert evaluation.metrics(nobody)[:2] == (0.0, 0.0)
    assert np.isnan(evaluation.metrics(nobody).macro_f1)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_rows_in_files_are_counted_alike(batch_size, monkeypatch, tmp_path):
    generator = np.random.default_rng(2)
    inputs = generator.standard_normal((50, 4)).astype(np.float32)
    labels = generator.integers(0, 6, 50).astype(np.int32)
    learner = training.make_learner(nn.Dense(6), training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    np.save(tmp_path / "rows.npy", inputs)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    rows = stored_rows.StoredRows([stored_rows.Part(mapped)])
    given = learner, variables

    def counts(inputs, labels):
        return evaluation.evaluate_async(*given, inputs, labels, 6, batch_size)

    expected = counts(inputs, labels)
    chex.assert_trees_all_equal(counts(rows, labels), expected)
    # They stay where they are unless there is room for them.
    monkeypatch.setattr(devices, "free_memory", lambda mesh: 16 * rows.nbytes)
    placed = evaluation.split_examples(rows, labels, None)
    assert all(isinstance(each, jax.Array) for each in placed)
    chex.assert_trees_all_equal(counts(*placed), expected)
    monkeypatch.setattr(devices, "free_memory", lambda mesh: 16 * rows.nbytes - 1)
    planned = evaluation.planned("tests", rows, 16, None)
    assert planned.copies == 4 and planned.arrays[0].shape == (16, *rows.shape[1:])
    left = evaluation.split_examples(rows, labels, None)
    assert left[0] is rows and left[1] is labels


def test_counts_add_up():
    counts = evaluation.Counts(np.array([[3, 1], [0, 2]]), np.float32(3.0))
    both = jax.tree.map(np.add, counts, counts)
    expected = evaluation.Metrics(0.5, 5 / 6, (6 / 7 + 4 / 5) / 2)
    for each in (counts, both):
        np.testing.assert_allclose(evaluation.metrics(each), expected)


def test_a_split_evaluation_counts_the_same():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    inputs = np.arange(10, dtype=np.int32)[:, None] % 6
    labels = np.arange(10, dtype=np.int32) % 4
    learner = training.make_learner(Given(), training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    plain = evaluation.evaluate(learner, variables, inputs, labels, 6, 4)
    assert evaluation.evaluate(learner, variables, inputs, labels, 6, 4, split) == plain


def test_labels_of_no_class_are_not_evaluated():
    inputs = np.zeros((7, 1), np.int32)
    learner = training.make_learner(Given(), training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    for labels in ([3, 6, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0, 0]):
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, and go from"):
            evaluation.evaluate(
                learner, variables, inputs, np.array(labels, np.int32), 5
            )
