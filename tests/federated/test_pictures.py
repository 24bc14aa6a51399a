"""The picture of a partition, for a few clients and for many."""

import io

import numpy as np
from PIL import Image

from federated import pictures

NAMES = [str(i) for i in range(10)]


def test_few_clients_are_bars_of_their_label_counts():
    counts = np.arange(30).reshape(3, 10)
    (axes,) = pictures.partition(counts, NAMES).axes
    assert [bars.get_label() for bars in axes.collections] == NAMES
    corners = [
        [path.vertices[:4] for path in bars.get_paths()] for bars in axes.collections
    ]
    bottoms, tops = np.min(corners, axis=2), np.max(corners, axis=2)
    ends = np.cumsum(counts, 1).T
    np.testing.assert_array_equal(bottoms[..., 1], ends - counts.T)
    np.testing.assert_array_equal(tops[..., 1], ends)
    np.testing.assert_allclose(bottoms[..., 0], [[-0.45, 0.55, 1.55]] * 10)
    np.testing.assert_allclose(tops[..., 0], [[0.45, 1.45, 2.45]] * 10)
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > counts.sum(1).max()


def test_names_are_no_formulas():
    names = [r"$\frac$", "$5", "a_$x$"]
    few = pictures.partition(np.ones((3, 3), int), names)
    many = pictures.partition(np.ones((70, 3), int), names)
    drawn = [entry.get_text() for entry in few.legends[0].get_texts()]
    drawn += [tick.get_text() for tick in many.axes[0].get_yticklabels()]
    assert drawn == 2 * [name.replace("$", r"\$") for name in names]
    assert all(len(pictures.svg(figure)) > 1000 for figure in (few, many))


def test_many_clients_are_a_sorted_map_over_their_sizes():
    random = np.random.default_rng(0)
    counts = random.integers(0, 4, (1200, 10)) * (random.random((1200, 10)) < 0.3)
    counts[:, 0] += 1
    share = counts / counts.sum(1, keepdims=True)
    above, below, _ = pictures.partition(counts, NAMES).axes
    shown = np.asarray(above.images[0].get_array()).T
    assert shown.shape == (1000, 10)
    np.testing.assert_allclose(shown.sum(1), 1)
    # Clients of one most frequent label stand together, the purest first.
    label, most = shown.argmax(1), shown.max(1)
    assert (np.diff(label) >= 0).all()
    assert (np.diff(most)[np.diff(label) == 0] <= 0).all()
    # Evenly spaced in that order, from the first to the last of all.
    order = np.lexsort((-share.max(1), share.argmax(1)))
    np.testing.assert_array_equal(shown[[0, -1]], share[order[[0, -1]]])
    assert "1,000 of 1,200" in above.get_xlabel()
    rank, sizes = below.lines[0].get_data()
    assert (rank[0], rank[-1]) == (1, 1200)
    falling = np.sort(counts.sum(1))[::-1]
    np.testing.assert_array_equal(sizes, falling[rank - 1])
    assert below.get_yscale() == "log"


def test_clients_without_examples_come_last():
    counts = np.ones((100, 10), int)
    counts[:40] = 0
    above, below, _ = pictures.partition(counts, NAMES).axes
    shown = np.asarray(above.images[0].get_array()).T
    np.testing.assert_allclose(shown.sum(1), [1] * 60 + [0] * 40)
    assert below.lines[0].get_ydata().tolist() == [10] * 60 + [0] * 40


def test_many_classes_are_a_map_and_files_are_reproducible():
    figures = [pictures.partition(np.ones((3, 62), int), range(62)) for _ in range(2)]
    assert all(len(figure.axes) == 3 for figure in figures)
    first, second = map(pictures.png, figures)
    assert first == second
    width, height = Image.open(io.BytesIO(first)).size
    assert (width, height) == (960, 810)
