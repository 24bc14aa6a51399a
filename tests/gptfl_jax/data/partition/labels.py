"""Labels and data sets to be dealt to clients."""

import numpy as np

from gptfl_jax.data.datasets import Dataset

ALPHAS = (1e-300, 1e-5, 0.1, 1.0, 1e7)


def dataset(labels, clients=None):
    labels = np.asarray(labels, np.int32)
    inputs = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple(str(i) for i in range(labels.max() + 1))
    return Dataset(inputs, labels, names, clients)


def labels_of(num_examples, num_classes, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, num_examples)
