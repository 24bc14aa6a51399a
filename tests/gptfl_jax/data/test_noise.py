import numpy as np
import pytest

from gptfl_jax.data import noise
from gptfl_jax.data.noise import Noise
from gptfl_jax.errors import UserError


def tone(samples=4000):
    return (0.3 * np.sin(0.1 * np.arange(samples))).astype(np.float32)


def power(x):
    return np.mean(np.square(x, dtype=np.float64))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_has_the_asked_power(snr_db):
    wave, background = tone(), np.random.default_rng(1).uniform(size=700)
    for recording in (None, background.astype(np.float32)):
        noisy = noise.add_noise(wave, Noise(snr_db, (1, 2)), recording)
        assert noisy.dtype == np.float32
        ratio = 10 * np.log10(power(wave) / power(noisy - wave))
        np.testing.assert_allclose(ratio, snr_db, atol=1e-3)


def test_white_noise_is_white():
    added = noise.add_noise(tone(20_000), Noise(0.0, (3,))) - tone(20_000)
    spectrum = np.abs(np.fft.rfft(added)[1:].reshape(10, -1)) ** 2
    # 1,000 exponential values a band: a standard deviation of 3 % each.
    band = spectrum.mean(1)
    assert np.abs(band / band.mean() - 1).max() < 0.15


def test_background_begins_anywhere_and_repeats():
    wave, background = tone(100), np.arange(1, 31, dtype=np.float32)
    begins = set()
    for seed in range(200):
        added = noise.add_noise(wave, Noise(0.0, (seed,)), background) - wave
        scale = np.sqrt(power(wave) / power(added))
        assert 0.999 < scale < 1.001
        steps = np.rint(added / added.min()).astype(int) % 30
        np.testing.assert_array_equal(steps, (steps[0] + np.arange(100)) % 30)
        begins.add(int(steps[0]))
    assert begins == set(range(30))


def test_silence_stays_silent():
    silent = np.zeros(100, np.float32)
    assert noise.add_noise(silent, Noise(0.0, (0,))) is silent
    wave = tone(100)
    assert noise.add_noise(wave, Noise(0.0, (0,)), silent) is wave


def test_draws_follow_the_seed():
    wave = tone()
    first = noise.add_noise(wave, Noise(10.0, (1, 5)))
    np.testing.assert_array_equal(first, noise.add_noise(wave, Noise(10.0, (1, 5))))
    assert (first != noise.add_noise(wave, Noise(10.0, (1, 6)))).mean() > 0.9


def test_groups_of_clients():
    levels = noise.level_of_client(10, [20, 30, 40], [0.4, 0.3, 0.3], seed=1)
    assert sorted(levels) == [20] * 4 + [30] * 3 + [40] * 3
    assert levels.tolist() != sorted(levels)
    other = noise.level_of_client(10, [20, 30, 40], [0.4, 0.3, 0.3], seed=2)
    assert other.tolist() != levels.tolist()
    some = noise.level_of_client(10, [5], [0.2])
    assert np.nansum(some) == 10 and np.isnan(some).sum() == 8
    even = noise.level_of_client(9, [1, 2, 3])
    assert sorted(even) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert np.isnan(noise.level_of_client(4, [])).all()
    with pytest.raises(UserError, match="noise shares"):
        noise.level_of_client(4, [1, 2], [0.5])
    with pytest.raises(UserError, match="at most 1 together"):
        noise.level_of_client(4, [1, 2], [0.8, 0.5])


@pytest.mark.parametrize(("sparsity", "confused"), [(0.4, 6), (0, 10), (1, 1)])
def test_confusion_matrix(sparsity, confused):
    matrix = noise.confusion_matrix(11, 0.3, sparsity, [4])
    np.testing.assert_allclose(np.diag(matrix), 0.7)
    np.testing.assert_allclose(matrix.sum(1), 1)
    off = matrix - np.diag(np.diag(matrix))
    assert ((off > 0).sum(1) == confused).all() and (off >= 0).all()
    # Which classes are confused differs from row to row.
    assert len({tuple(row > 0) for row in off}) > 1


def test_wrong_labels_shared_equally():
    drawn = noise.confusion_matrix(11, 0.3, 0.4, [4])
    equal = noise.confusion_matrix(11, 0.3, 0.4, [4], equal=True)
    np.testing.assert_array_equal(drawn > 0, equal > 0)
    off = equal - np.diag(np.diag(equal))
    np.testing.assert_allclose(off[off > 0], 0.3 / 6)
    labels, clients = np.zeros(9, np.int32), np.full(9, "a")
    given = noise.noisy_labels(labels, clients, 3, [1.0], sparsity=0.5, equal=True)
    # One class is left of two: all wrong labels are of it.
    assert len(set(given.tolist())) == 1 and given[0] > 0


def test_labels_follow_the_matrix_of_their_client():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 40_000).astype(np.int32)
    clients = rng.choice(["anna", "bert"], len(labels))
    given = noise.noisy_labels(labels, clients, 4, [0.4], [0.5], seed=5)
    level = noise.level_of_client(2, [0.4], [0.5], seed=5)
    careless = int(np.flatnonzero(level == 0.4)[0])
    mine = clients == ["anna", "bert"][careless]
    np.testing.assert_array_equal(given[~mine], labels[~mine])
    counts = np.zeros((4, 4))
    np.add.at(counts, (labels[mine], given[mine]), 1)
    expected = noise.confusion_matrix(4, 0.4, 0.4, [5, careless, 0])
    found = counts / counts.sum(1, keepdims=True)
    # 5,000 draws a row: a standard deviation of at most 0.7 %.
    assert np.abs(found - expected).max() < 0.035
    assert (counts[expected == 0] == 0).all()


def test_label_noise_out_of_range():
    for level, sparsity in ((1.2, 0.4), (0.5, -0.1)):
        with pytest.raises(UserError, match="take numbers from 0 to"):
            noise.confusion_matrix(4, level, sparsity, [0])
    with pytest.raises(UserError, match="two classes"):
        noise.confusion_matrix(1, 0.5, 0.4, [0])
