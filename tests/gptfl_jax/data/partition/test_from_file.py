"""Clients as a file deals them."""

import json

import numpy as np
import pytest

from gptfl_jax.data import federated_data, partition
from gptfl_jax.data.partition.from_file import content_of
from gptfl_jax.errors import UserError

from .labels import dataset, labels_of

# As FedML writes it: a client a block, without quotes.
HETERO_FIX = "{\n0: [\n4, 1\n],\n2: [\n0,\n5\n],\n10: [\n2, 3\n]\n}\n"
OWNERS = [1, 0, 2, 2, 0, 1]


def owners_of(file, num_examples=6):
    data = dataset(labels_of(num_examples, 2))
    owner, count = partition.partition("from_file", data, 100, 0, {"file": str(file)})
    assert count == owner.max() + 1
    return owner.tolist()


@pytest.mark.parametrize(
    "content",
    [
        HETERO_FIX,
        json.dumps({"10": [2, 3], "2": [5, 0], "0": [1, 4], "11": []}),
        "2\n0\n10\n10\n0\n2\n",
        "bert\nanna\ncleo\ncleo\nanna\nbert",
    ],
)
def test_the_file_says_whose_an_example_is(content, tmp_path):
    (tmp_path / "clients.txt").write_text(content)
    assert owners_of(tmp_path / "clients.txt") == OWNERS
    np.save(tmp_path / "clients.npy", np.array([7, 3, 9, 9, 3, 7]))
    assert owners_of(tmp_path / "clients.npy") == OWNERS


def test_another_partition_is_given_again(tmp_path):
    data = dataset(labels_of(300, 4))
    owner = partition.dirichlet(data.labels, 10, 0.3, 0)
    rows = {str(c): np.flatnonzero(owner == c).tolist() for c in range(10)}
    (tmp_path / "map.json").write_text(json.dumps(rows, indent=1))
    assert owners_of(tmp_path / "map.json", 300) == owner.tolist()
    federated = federated_data.federate(data, owner, 10)
    assert federated.offsets[-1] == 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{0: [0, 1, 2], 1: [3, 4, 6]}",
            "client 1 has row '6', of 0 to 5: give th",
        ),
        ("{0: [0, 1, 2], 1: [3, -4]}", "client 1 has row '-4', of 0 to 5"),
        ("{0: [0, 1, 2], 1: [2, 3]}", "row 2 is dealt twice"),
        ("{0: [0, 1, 2], 1: [5]}", "deals 4 of 6 examples; row 3 has no client"),
        ("{0: [0, 1, 2], 0: [3, 4, 5]}", "names 0 twice"),
        ("{}", "holds no rows by client"),
        ("{0: [0, 1], 1: {2: 3}}", "holds no rows by client, but '{1:{2:3}}'"),
        ("a\nb\n\nc\nd\ne\n", "line 3 names no client"),
        ("a\nb\n", "gives 2 examples a client, not 6"),
        ("", "gives 0 examples a client, not 6"),
    ],
)
def test_a_file_of_other_data_is_refused(content, message, tmp_path):
    (tmp_path / "clients.txt").write_text(content)
    with pytest.raises(UserError, match=r"clients.txt: " + message):
        owners_of(tmp_path / "clients.txt")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xe9\n" * 6)
    for name in ("none.txt", "none.npy", "latin.txt"):
        message = f"{name}: cannot be read .*: give the partition .*, or a .npy of"
        with pytest.raises(UserError, match=message):
            owners_of(tmp_path / name)
    with pytest.raises(UserError, match="none.txt: cannot be read .*: give the part"):
        content_of(str(tmp_path / "none.txt"))
    np.save(tmp_path / "half.npy", np.full(6, 0.5))
    with pytest.raises(UserError, match="half.npy: holds float64, not a client number"):
        owners_of(tmp_path / "half.npy")
    with pytest.raises(UserError, match="partition_options.file is missing: takes a n"):
        partition.partition("from_file", dataset(labels_of(6, 2)), 100, 0)
