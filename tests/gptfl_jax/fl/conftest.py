"""A tiny federated problem, and its training written out in numpy from the papers."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl.cohorts import example_order
from gptfl_jax.training import Learner, Variables, cross_entropy, masked_mean

FEATURES, HIDDEN, CLASSES = 5, 4, 3
SIZES = (1, 7, 30, 12, 20, 8, 3)

Weights = dict[str, np.ndarray]
Step = Callable[[Weights, Weights], Weights]


class Problem(NamedTuple):
    """One hidden layer of tanh, softmax, and clients of very different sizes."""

    learner: Learner
    variables: Variables
    data: FederatedData

    def batches(self, key, client, batch_size, epochs=1, steps=0, drop_last=False):
        """The (inputs, labels) of each step of a client, in the engine's order."""
        start, end = (int(v) for v in self.data.offsets[client : client + 2])
        size, result, epoch = end - start, [], 0
        while (len(result) < steps) if steps else (epoch < epochs):
            order = np.asarray(example_order(key, client, epoch, size))
            for first in range(0, size, batch_size):
                rows = start + order[first : first + batch_size]
                if drop_last and len(rows) < batch_size <= size:
                    continue
                batch = np.asarray(self.data.inputs)[rows]
                result.append((batch, np.asarray(self.data.labels)[rows]))
            epoch += 1
        return result[:steps] if steps else result

    def weights(self) -> Weights:
        return {k: np.array(v) for k, v in self.variables["params"].items()}

    def size(self, client: int) -> int:
        return int(self.data.offsets[client + 1] - self.data.offsets[client])

    def share(self, cohort, weighting: str) -> np.ndarray:
        sizes = np.array([self.size(c) for c in cohort], float)
        weights = sizes if weighting == "examples" else np.ones(len(cohort))
        return weights / weights.sum()


def loss_and_gradient(
    w: Weights, x: np.ndarray, labels: np.ndarray
) -> tuple[float, Weights]:
    """Mean cross-entropy and its gradient, by hand."""
    hidden = np.tanh(x @ w["w0"] + w["b0"])
    logits = hidden @ w["w1"] + w["b1"]
    logits = logits - logits.max(1, keepdims=True)
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(x))
    loss = -np.log(p[rows, labels]).mean()
    d = p.copy()
    d[rows, labels] -= 1
    d /= len(x)
    back = (d @ w["w1"].T) * (1 - hidden**2)
    return loss, {
        "w0": x.T @ back,
        "b0": back.sum(0),
        "w1": hidden.T @ d,
        "b1": d.sum(0),
    }


def gradient(w: Weights, batch: tuple[np.ndarray, np.ndarray]) -> Weights:
    return loss_and_gradient(w, *batch)[1]


def combine(f: Callable[..., np.ndarray], *trees: Weights) -> Weights:
    return {name: f(*(tree[name] for tree in trees)) for name in trees[0]}


def norm(w: Weights) -> float:
    return float(np.sqrt(sum((v**2).sum() for v in w.values())))


def assert_close(params, expected: Weights, tolerance: float) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(
            np.asarray(params[name]), value, rtol=0, atol=tolerance, err_msg=name
        )


def make_learner() -> Learner:
    def init(key):
        shapes = {
            "w0": (FEATURES, HIDDEN),
            "b0": (HIDDEN,),
            "w1": (HIDDEN, CLASSES),
            "b1": (CLASSES,),
        }
        keys = jax.random.split(key, len(shapes))
        params = {
            name: 0.5 * jax.random.normal(k, shape, jnp.zeros(()).dtype)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return {"params": params}

    def predict(variables, inputs):
        p = variables["params"]
        return jnp.tanh(inputs @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]

    def loss(variables, batch, key):
        losses = cross_entropy(predict(variables, batch.inputs), batch.labels)
        return masked_mean(losses, batch.mask), {}

    return Learner(init, loss, predict)


def make_problem() -> Problem:
    random = np.random.default_rng(0)
    count = sum(SIZES)
    labels = random.integers(0, CLASSES, count)
    inputs = random.normal(size=(count, FEATURES)) + np.eye(FEATURES)[labels]
    learner = make_learner()
    data = FederatedData(
        jnp.asarray(inputs),
        jnp.asarray(labels, jnp.int32),
        jnp.asarray(np.concatenate([[0], np.cumsum(SIZES)]), jnp.int32),
    )
    return Problem(learner, learner.init(jax.random.key(0)), data)


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """Every test compiles rounds of its own: do that fast rather than well."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def problem(quick_compilation) -> Iterator[Problem]:
    """In float64, so that an implementation can be compared to 12 digits."""
    with jax.enable_x64(True):
        yield make_problem()
