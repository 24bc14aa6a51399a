"""Rounds of FedAvg and of FedOpt with Adam against FedJAX, on the same batches.

FedJAX computes with its own loss, gradients, client loop, weighted mean and server
step. The network is one Flax module for both, and the formulas of the optimizers are
optax's for both; `tests/gptfl_jax/fl/algorithms/` has those in numpy.
"""

import contextlib
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptfl_jax.data.federated_data import FederatedData
from gptfl_jax.fl import algorithms
from gptfl_jax.fl.cohorts import example_order
from gptfl_jax.fl.execution import place
from gptfl_jax.fl.local_training import LocalTraining
from gptfl_jax.training import make_learner

fedjax = pytest.importorskip("fedjax")

FEATURES, CLASSES = 6, 4
SIZES = (1, 7, 30, 12, 20, 8, 3)
"""One example, less than a batch, whole batches, and whole ones with a rest."""
BATCH_SIZE, EPOCHS = 8, 2
# Clients that come again, and those that wait; every cohort in another order.
COHORTS = ((2, 0, 5, 3), (4, 6, 2, 1), (0, 1, 3, 6), (5, 4, 2, 0), (3, 2, 6, 4))


class Network(nn.Module):
    @nn.compact
    def __call__(self, inputs, train=False, mask=None):
        return nn.Dense(CLASSES)(nn.tanh(nn.Dense(5)(inputs)))


class OrderedDataset(fedjax.ClientDataset):
    """Gives an algorithm that asks for shuffled batches ours: in our order, the last of
    an epoch smaller (FedJAX would fill it with examples of the next epoch)."""

    def __init__(self, examples, orders):
        super().__init__(examples)
        self.orders = orders

    def shuffle_repeat_batch(self, hparams=None, **kwargs):
        epochs = [
            fedjax.ClientDataset({k: v[order] for k, v in self.raw_examples.items()})
            for order in self.orders
        ]
        return list(
            itertools.chain.from_iterable(
                epoch.batch(batch_size=hparams.batch_size) for epoch in epochs
            )
        )


def make_data(dtype) -> FederatedData:
    random = np.random.default_rng(0)
    count = sum(SIZES)
    labels = random.integers(0, CLASSES, count).astype(np.int32)
    inputs = random.normal(size=(count, FEATURES)) + 2 * np.eye(FEATURES)[labels]
    offsets = np.concatenate([[0], np.cumsum(SIZES)]).astype(np.int32)
    return FederatedData(inputs.astype(dtype), labels, offsets)


def ordered_datasets(data: FederatedData, cohort, key):
    """What FedJAX takes as the clients of a round."""
    result = []
    for client in cohort:
        rows = slice(*data.offsets[client : client + 2].tolist())
        orders = [
            np.asarray(example_order(key, client, epoch, SIZES[client]))
            for epoch in range(EPOCHS)
        ]
        examples = {"x": data.inputs[rows], "y": data.labels[rows]}
        # Its own random numbers: nothing here draws any.
        dataset = OrderedDataset(examples, orders)
        result.append((client, dataset, jax.random.PRNGKey(client)))
    return result


def make_fedjax(network, client_optimizer, server_optimizer):
    model = fedjax.Model(
        init=None,
        apply_for_train=lambda params, batch, rng: network.apply(
            {"params": params}, batch["x"]
        ),
        apply_for_eval=None,
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(
            batch["y"], logits
        ),
        eval_metrics={},
    )
    return fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        client_optimizer,
        server_optimizer,
        fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH_SIZE, num_epochs=EPOCHS),
    )


ADAM = {"learning_rate": 0.05, "b1": 0.9, "b2": 0.99, "eps": 1e-3}
METHODS = {
    "fedavg": (algorithms.fedavg, lambda: fedjax.optimizers.sgd(1.0)),
    "fedopt adam": (
        functools.partial(algorithms.fedopt, server_optimizer=optax.adam(**ADAM)),
        lambda: fedjax.optimizers.adam(**ADAM),
    ),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)]
)
@pytest.mark.parametrize(
    ("method", "momentum"), [("fedavg", None), ("fedavg", 0.9), ("fedopt adam", None)]
)
def test_weights_after_every_round(method, momentum, dtype, tolerance, monkeypatch):
    # JAX has dropped the name; FedJAX's last release still calls it.
    if not hasattr(jax, "tree_map"):
        monkeypatch.setattr(jax, "tree_map", jax.tree.map, raising=False)
    make_ours, make_server = METHODS[method]
    precise = dtype == "float64"
    with jax.enable_x64(True) if precise else contextlib.nullcontext():
        data, network = make_data(dtype), Network()
        example = jax.ShapeDtypeStruct((FEATURES,), dtype)
        learner = make_learner(network, example, dtype=dtype)
        variables = learner.init(jax.random.key(0))
        local = LocalTraining(optax.sgd(0.1, momentum=momentum), BATCH_SIZE, EPOCHS)
        ours = {
            name: make_ours(learner, local, execution=name, **options)
            for name, options in {"packed": {}, "vmap": {"lanes": 3}}.items()
        }
        theirs = make_fedjax(
            network, fedjax.optimizers.sgd(0.1, momentum=momentum), make_server()
        )
        placed = place(data)
        states = {name: each.init(variables, len(SIZES)) for name, each in ours.items()}
        expected = theirs.init(variables["params"])
        for number, cohort in enumerate(COHORTS):
            key = jax.random.fold_in(jax.random.key(1), number)
            before = expected.params
            expected, _ = theirs.apply(expected, ordered_datasets(data, cohort, key))
            scale = largest(expected.params)
            moved = jax.tree.map(jnp.subtract, expected.params, before)
            assert largest(moved) > 0.01 * scale
            for name, algorithm in ours.items():
                states[name], _ = algorithm.round(
                    states[name], placed, jnp.array(cohort, jnp.int32), key
                )
                for found, wanted in zip(
                    jax.tree.leaves(states[name].variables["params"]),
                    jax.tree.leaves(expected.params),
                    strict=True,
                ):
                    assert found.dtype == wanted.dtype == dtype
                    np.testing.assert_allclose(
                        found,
                        wanted,
                        rtol=0,
                        atol=tolerance * scale,
                        err_msg=f"{name}, round {number + 1}",
                    )


def largest(tree) -> float:
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
