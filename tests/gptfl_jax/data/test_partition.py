import numpy as np
import pytest

from gptfl_jax.data import partition
from gptfl_jax.data.datasets import Dataset
from gptfl_jax.errors import UserError

ALPHAS = (1e-300, 1e-5, 0.1, 1.0, 1e7)


def dataset(labels, clients=None):
    labels = np.asarray(labels, np.int32)
    inputs = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    names = tuple(str(i) for i in range(labels.max() + 1))
    return Dataset(inputs, labels, names, clients)


def labels_of(num_examples, num_classes, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, num_examples)


def test_natural_clients_are_numbered_in_sorted_order():
    speakers = np.array(["c", "a", "c", "b"])
    np.testing.assert_array_equal(partition.natural(speakers), [2, 0, 2, 1])


def test_federate_sorts_by_client_and_keeps_the_order_within():
    data = partition.federate(
        dataset([5, 4, 3, 2, 1, 0]), np.array([2, 0, 2, 0, 0, 2]), 4
    )
    np.testing.assert_array_equal(data.inputs[:, 0, 0, 0], [1, 3, 4, 0, 2, 5])
    np.testing.assert_array_equal(data.labels, [4, 2, 1, 5, 3, 0])
    np.testing.assert_array_equal(data.offsets, [0, 3, 3, 6, 6])
    assert data.labels.dtype == data.offsets.dtype == np.int32


def test_federate_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"client numbers must lie in 0\.\.1, and go"):
        partition.federate(dataset([0, 0]), np.array([0, 2]), 2)
    with pytest.raises(ValueError, match=r"3 labels, 2 client numbers and 3 inputs"):
        partition.federate(dataset([0, 0, 0]), np.array([0, 1]), 2)
    wrong = dataset([3, 6])._replace(class_names=("a", "b", "c", "d"))
    message = r"labels must lie in 0\.\.3, and go from 3 to 6"
    with pytest.raises(ValueError, match=message):
        partition.federate(wrong, np.array([0, 1]), 2)


def test_summary_counts_classes_by_client():
    data = partition.federate(dataset([0, 1, 1, 2, 1]), np.array([0, 0, 1, 1, 1]), 3)
    summary = partition.summarise(data, 3)
    np.testing.assert_array_equal(summary.sizes, [2, 3, 0])
    np.testing.assert_array_equal(summary.histogram, [[1, 1, 0], [0, 2, 1], [0, 0, 0]])
    assert "3 clients, 5 examples; a client has 0 to 3 examples" in str(summary)


def test_iid_deals_evenly_and_by_seed():
    owner = partition.iid(103, 10, seed=1)
    assert sorted(np.bincount(owner)) == [10] * 7 + [11] * 3
    np.testing.assert_array_equal(owner, partition.iid(103, 10, seed=1))
    assert (owner != partition.iid(103, 10, seed=2)).any()


@pytest.mark.parametrize("split", [partition.dirichlet, partition.dirichlet_balanced])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_dirichlet_ends_with_no_client_below_the_minimum(split, alpha):
    labels = labels_of(1000, 10)
    owner = split(labels, 90, alpha, seed=0, min_examples=7)
    sizes = np.bincount(owner, minlength=90)
    assert len(sizes) == 90 and sizes.min() >= 7 and sizes.sum() == 1000
    again = split(labels, 90, alpha, seed=0, min_examples=7)
    np.testing.assert_array_equal(owner, again)
    assert (owner != split(labels, 90, alpha, seed=1, min_examples=7)).any()


@pytest.mark.parametrize("split", [partition.dirichlet, partition.dirichlet_balanced])
def test_dirichlet_with_as_many_clients_as_examples(split):
    owner = split(labels_of(50, 5), 50, 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(owner), np.arange(50))


def test_dirichlet_limits():
    labels = np.repeat(np.arange(10), 100)
    for_class = partition.dirichlet(labels, 20, 1e9, seed=0).reshape(10, 100)
    # Large alpha: every class is split evenly, up to rounding.
    for row in for_class:
        assert np.bincount(row, minlength=20).tolist() == [5] * 20
    # Small alpha: a class is at one client. (Two clients; none is left empty here.)
    for_class = partition.dirichlet(labels, 2, 1e-9, seed=0).reshape(10, 100)
    assert (for_class == for_class[:, :1]).all()


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0])
def test_dirichlet_draw_has_the_moments_of_the_distribution(alpha):
    generator = np.random.default_rng(0)
    draws = np.stack([partition._dirichlet(generator, alpha, 5) for _ in range(20_000)])
    np.testing.assert_allclose(draws.sum(1), 1)
    np.testing.assert_allclose(draws.mean(0), 0.2, atol=0.01)
    # E[p^2] = (alpha + 1) / (K (K alpha + 1)) for K shares.
    second = (alpha + 1) / (5 * (5 * alpha + 1))
    np.testing.assert_allclose((draws**2).mean(0), second, atol=0.01)


def test_filling_up_takes_no_more_than_needed_from_the_largest():
    # Sizes 10, 4, 0, 1 with at least 2 each need 3 more: 10 falls to 7.
    owner = np.array([0] * 10 + [1] * 4 + [3])
    filled = partition._fill_up(owner, 4, 2, np.random.default_rng(0))
    assert np.bincount(filled).tolist() == [7, 4, 2, 2]
    np.testing.assert_array_equal(filled[10:], owner[10:])
    # 10, 9 and a client missing 5: both fall to 7, 3 + 2.
    owner = np.array([0] * 10 + [1] * 9)
    filled = partition._fill_up(owner, 3, 5, np.random.default_rng(0))
    assert np.bincount(filled).tolist() == [7, 7, 5]


def test_balanced_dirichlet_gives_nothing_to_a_full_client():
    labels = labels_of(5000, 10)
    owner = partition.dirichlet_balanced(labels, 50, 0.1, seed=3)
    data = partition.federate(dataset(labels), owner, 50)
    summary = partition.summarise(data, 10)
    for counts in summary.histogram:
        last = np.flatnonzero(counts).max()
        assert counts[:last].sum() < 5000 / 50
    plain = np.bincount(partition.dirichlet(labels, 50, 0.1, seed=3), minlength=50)
    assert summary.sizes.std() < plain.std()


def test_shards_are_of_one_class_and_equal():
    labels = np.repeat(np.arange(10), 20)
    owner = partition.shards(labels, 10, seed=0, shards_per_client=2)
    summary = partition.summarise(
        partition.federate(dataset(labels), owner, 10), num_classes=10
    )
    assert (summary.sizes == 20).all()
    assert ((summary.histogram == 10) | (summary.histogram % 20 == 0)).all()
    assert (summary.histogram > 0).sum(1).max() == 2


def test_quantity_skew_changes_sizes_only():
    owner = partition.quantity_skew(10_000, 20, 0.5, seed=0, min_examples=3)
    sizes = np.bincount(owner, minlength=20)
    assert sizes.min() >= 3 and sizes.max() > 1000
    labels = np.arange(10_000) % 2
    largest = labels[owner == sizes.argmax()]
    assert abs(largest.mean() - 0.5) < 0.05


def test_held_out_examples_are_a_share_of_each_client():
    owner = np.random.default_rng(0).permutation(
        np.repeat([0, 1, 3, 4], [10, 1, 25, 2])
    )
    held_out = partition.hold_out(owner, 0.3, seed=0)
    # 3; 0.3 rounds to 0; 7.5 rounds to the even 8; 0.6 rounds to 1.
    assert np.bincount(owner[held_out], minlength=5).tolist() == [3, 0, 0, 8, 1]
    # However much is asked for, one example stays.
    most = np.bincount(owner[partition.hold_out(owner, 0.999, seed=0)], minlength=5)
    assert most.tolist() == [9, 0, 0, 24, 1]
    assert not partition.hold_out(owner, 0.0, seed=0).any()
    np.testing.assert_array_equal(held_out, partition.hold_out(owner, 0.3, seed=0))
    assert (held_out != partition.hold_out(owner, 0.3, seed=1)).any()
    with pytest.raises(ValueError, match=r"1\.0: takes a number in \[0, 1\)"):
        partition.hold_out(owner, 1.0, seed=0)


def test_held_out_examples_are_drawn_uniformly():
    # Of 20,000 clients with 4 examples each, one held out: each place as often.
    owner = np.tile(np.arange(20_000), 4)
    held_out = partition.hold_out(owner, 0.25, seed=5).reshape(4, -1)
    assert (held_out.sum(0) == 1).all()
    np.testing.assert_allclose(held_out.mean(1), 0.25, atol=0.02)


def test_many_clients():
    owner = partition.dirichlet(labels_of(400_000, 10), 100_000, 0.1, seed=0)
    sizes = np.bincount(owner, minlength=100_000)
    assert sizes.min() == 1 and sizes.sum() == 400_000


def test_partition_by_name():
    data = dataset(labels_of(100, 4), clients=np.repeat(["x", "y"], 50))
    owner, count = partition.partition("natural", data, 10, seed=0)
    assert count == 2 and owner.tolist() == [0] * 50 + [1] * 50
    for method in ("iid", "dirichlet", "dirichlet_balanced", "shards", "quantity_skew"):
        options = {} if method in ("iid", "shards") else {"alpha": 0.3}
        owner, count = partition.partition(method, data, 10, 0, options)
        assert count == 10 and np.unique(owner).tolist() == list(range(10))
    expected = partition.dirichlet(data.labels, 10, 0.3, 0, min_examples=2)
    owner, _ = partition.partition(
        "dirichlet", data, 10, 0, {"alpha": 0.3, "min_examples": 2}
    )
    np.testing.assert_array_equal(owner, expected)


@pytest.mark.parametrize(
    "method", ["iid", "dirichlet", "dirichlet_balanced", "shards", "quantity_skew"]
)
def test_a_data_set_of_one_class(method):
    data = dataset(np.zeros(40))
    skewed = {"alpha": 0.1, "min_examples": 2}
    options = {} if method in ("iid", "shards") else skewed
    owner, count = partition.partition(method, data, 10, 0, options)
    summary = partition.summarise(partition.federate(data, owner, count), 1)
    assert summary.sizes.min() >= 2 and summary.sizes.sum() == 40
    np.testing.assert_array_equal(summary.histogram[:, 0], summary.sizes)
    assert "of 1 to 1 classes" in str(summary)


def test_what_cannot_be_split_is_refused():
    data = dataset(labels_of(30, 4))
    with pytest.raises(UserError, match="no natural clients"):
        partition.partition("natural", data, 10, seed=0)
    with pytest.raises(UserError, match="num_clients = 31 .* has 30"):
        partition.partition("iid", data, 31, seed=0)
    with pytest.raises(UserError, match="needs 40 examples"):
        partition.partition("dirichlet", data, 10, 0, {"min_examples": 4})
    with pytest.raises(UserError, match="iid takes no such option; it takes none"):
        partition.partition("iid", data, 10, 0, {"alpha": 0.1})
    with pytest.raises(UserError, match="alpha = 0"):
        partition.partition("dirichlet", data, 10, 0, {"alpha": 0})
    with pytest.raises(UserError, match="'even': takes one of dirichlet, .* natural"):
        partition.partition("even", data, 10, seed=0)
