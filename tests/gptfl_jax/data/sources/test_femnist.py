"""FEMNIST, in small files of both released forms."""

import json
import sqlite3

import numpy as np
import pytest

from gptfl_jax.data import partition, sources
from gptfl_jax.data.sources import femnist
from gptfl_jax.errors import UserError
from tests.handwriting import pictures, write_leaf, write_tff

TRAIN = {"f2_7": [61, 3], "f10_1": [10]}
TEST = {"f2_7": [36], "f10_1": [0, 35]}


def of_leaf(folder):
    write_leaf(folder / "data/train/all_data_0_niid_0_keep_0_train_9.json", TRAIN)
    write_leaf(folder / "data/test/all_data_0_niid_0_keep_0_test_9.json", TEST)


def of_tff(folder):
    digits = {"digits_only_train": {"f2_7": [3]}, "digits_only_test": {"f10_1": [0]}}
    parts = {"all_train": TRAIN, "all_test": TEST, **digits}
    write_tff(folder / "emnist_all.sqlite", parts)


@pytest.mark.parametrize("write", [of_leaf, of_tff])
def test_pictures_labels_and_writers_are_those_of_the_release(write, tmp_path):
    write(tmp_path)
    train, test = sources.load("femnist", str(tmp_path))[:2]
    for data, writers in ((train, TRAIN), (test, TEST)):
        # By name, and so "f10" comes before "f2".
        labels = writers["f10_1"] + writers["f2_7"]
        assert data.labels.tolist() == labels
        assert data.clients.tolist() == [
            name for name in ("f10_1", "f2_7") for _ in writers[name]
        ]
        assert data.inputs.shape == (3, 28, 28, 1)
        expected = np.full((3, 784), 255)
        expected[range(3), labels] = labels
        np.testing.assert_array_equal(data.inputs.reshape(3, 784), expected)
    names = train.class_names
    assert [names[n] for n in (0, 10, 35, 36, 61)] == [
        *("digit 0", "capital A", "capital Z", "small a", "small z")
    ]
    assert names == sources.class_names("femnist", str(tmp_path))
    owner, number = partition.partition("natural", train, 9, 0)
    assert (owner.tolist(), number) == ([0, 1, 1], 2)

    one = sources.load("femnist", str(tmp_path), writers=1)
    assert set(one.train.clients) == set(one.test.clients) == {"f10_1"}


def test_unsplit_files_give_a_part_of_each_writers_pictures(tmp_path):
    for file in range(2):
        # Ten pictures each, and no two alike.
        first = [30 * file + 10 * i for i in range(3)]
        writers = {f"w{file}{i}": [*range(n, n + 10)] for i, n in enumerate(first)}
        write_leaf(tmp_path / f"all_data/all_data_{file}.json", writers)
    train, test = sources.load("femnist", str(tmp_path), test_fraction=0.2)[:2]
    for data, count in ((train, 8), (test, 2)):
        names, counts = np.unique(data.clients, return_counts=True)
        assert names.tolist() == ["w00", "w01", "w02", "w10", "w11", "w12"]
        assert set(counts) == {count}
    again = sources.load("femnist", str(tmp_path), test_fraction=0.2, split_seed=1)
    assert again.test.labels.tolist() != test.labels.tolist()

    write_leaf(tmp_path / "all_data/all_data_2.json", {"w00": [1]})
    with pytest.raises(UserError, match="the writer w00, as has another file"):
        sources.load("femnist", str(tmp_path))


def test_large_files_are_kept_as_arrays(tmp_path, monkeypatch):
    monkeypatch.setattr(femnist, "_SMALL_BYTES", 1)
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path / "cache"))
    of_leaf(tmp_path)
    first = sources.load("femnist", str(tmp_path))
    kept = sorted((tmp_path / "cache" / "femnist").iterdir())
    assert len(kept) == 2

    def fail(*_):
        pytest.fail("is read again")

    with monkeypatch.context() as patch:
        patch.setattr(femnist, "_parsed", fail)
        again = sources.load("femnist", str(tmp_path))
    for one, other in zip(first[:2], again[:2], strict=True):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.clients.tolist() == other.clients.tolist()
    for path in kept:
        path.write_bytes(path.read_bytes()[:-99])
    again = sources.load("femnist", str(tmp_path))
    np.testing.assert_array_equal(first.test.inputs, again.test.inputs)


def test_what_is_no_femnist_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="holds no FEMNIST: takes train/ and test/"):
        sources.load("femnist", str(tmp_path))
    file = tmp_path / "all_data_0.json"
    good = pictures([1])
    for x, y, message in (
        ([[0.5] * 783], [1], "a picture of the writer 'a' has 783 pixels"),
        ([[2.0] * 784], [1], "numbers of 0 to 1"),
        ([[float("nan")] * 784], [1], "numbers of 0 to 1"),
        (good, [62], "no numbers of 0 to 61"),
        (good, [1, 2], "2 labels of 1 pictures"),
        (good, "1", "has no lists x and y"),
    ):
        file.write_text(json.dumps({"user_data": {"a": {"x": x, "y": y}}}))
        with pytest.raises(UserError, match=message) as error:
            sources.load("femnist", str(tmp_path))
        assert str(file) in str(error.value)
    database = tmp_path / "emnist_all.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE VIEW examples AS SELECT 'all_train' AS split_name, 'a' AS client_id"
        )
    connection.close()
    with pytest.raises(UserError, match="has no table examples"):
        sources.load("femnist", str(tmp_path))
