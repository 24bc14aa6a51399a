"""What data a run was made from, as a few letters: by content, wherever it lies."""

import hashlib

import jax
import numpy as np

from gptfl_jax.data.datasets import Dataset

# Of an array larger than this, so many rows stand for it: reading a memory-mapped data
# set from end to end would take longer than many a run.
_READ_WHOLE_BYTES = 1 << 28
_ROWS_READ = 4096
_READ_AT_ONCE = 256


def fingerprint(*datasets: Dataset | None) -> str:
    """A digest of examples, labels, classes and natural clients.

    Arrays of more than 256 MB count by their shape and by 4,096 of their rows, evenly
    spaced; all others, and all labels, in full.
    """
    digest = hashlib.sha256()
    for dataset in datasets:
        if dataset is None:
            digest.update(b"none")
            continue
        digest.update(repr(dataset.class_names).encode(errors="backslashreplace"))
        leaves = [*jax.tree.leaves(dataset.inputs), dataset.labels]
        for leaf in leaves if dataset.clients is None else [*leaves, dataset.clients]:
            digest.update(f"{leaf.dtype.str}{leaf.shape}".encode())
            if leaf.dtype.hasobject:
                digest.update(repr(leaf.tolist()).encode(errors="backslashreplace"))
                continue
            rows = np.arange(len(leaf))
            if leaf.nbytes > _READ_WHOLE_BYTES and leaf is not dataset.labels:
                rows = np.linspace(0, len(leaf) - 1, min(_ROWS_READ, len(leaf)))
                rows = np.unique(rows.astype(np.int64))
            if isinstance(leaf, np.ndarray) and len(rows) == len(leaf):
                digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
                continue
            for start in range(0, len(rows), _READ_AT_ONCE):
                read = leaf[rows[start : start + _READ_AT_ONCE]]
                digest.update(np.ascontiguousarray(read).view(np.uint8).data)
    return digest.hexdigest()[:16]
