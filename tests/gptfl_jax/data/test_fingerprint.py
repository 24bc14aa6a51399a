import numpy as np

from gptfl_jax.data import fingerprint as module
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.data.fingerprint import fingerprint


def dataset(**fields) -> Dataset:
    rows = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
    whole = Dataset(rows, np.arange(6, dtype=np.int32) % 2, ("cat", "dog"))
    return whole._replace(**fields)


def test_it_is_of_the_content():
    first = fingerprint(dataset(), None)
    assert first == fingerprint(dataset(inputs=dataset().inputs.copy()), None)
    changed = dataset().inputs.copy()
    changed[3, 1, 1] += 1
    others = [
        (dataset(inputs=changed), None),
        (dataset(inputs=dataset().inputs.view(np.int8)), None),
        (dataset(inputs=dataset().inputs.reshape(6, 4, 1, 1)), None),
        (dataset(labels=np.arange(6, dtype=np.int32) % 3), None),
        (dataset(class_names=("dog", "cat")), None),
        (dataset(clients=np.array(list("aabbcc"))), None),
        (dataset(clients=np.array(list("aabbcc"), object)), None),
        (dataset(), dataset()),
        (None, dataset()),
    ]
    assert len({first, *(fingerprint(*each) for each in others)}) == len(others) + 1


def test_of_large_arrays_some_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_READ_WHOLE_BYTES", 1000)
    monkeypatch.setattr(module, "_ROWS_READ", 3)
    np.save(tmp_path / "rows.npy", np.zeros((501, 4), np.uint8))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r+")
    labels = np.zeros(501, np.int32)
    large = Dataset(rows, labels, ("cat", "dog"))
    first = fingerprint(large)
    rows[1] = 9  # none of the first, the middle and the last
    assert fingerprint(large) == first
    rows[250] = 9
    assert fingerprint(large) != first
    labels[1] = 1
    rows[250] = 0
    assert fingerprint(large) != first
