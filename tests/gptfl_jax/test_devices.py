"""Test sets on 1, 2 and 8 devices made of one CPU, each in its own process."""

import pathlib

import jax
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from gptfl_jax import devices
from tests.cpu_devices import assert_no_waiting, results_on

from .evaluations_on_devices import CLASSES, SIZES, examples

PROGRAM = pathlib.Path(__file__).with_name("evaluations_on_devices.py")


@pytest.fixture(scope="module")
def dump(tmp_path_factory) -> pathlib.Path:
    """Where XLA writes the programs of the run on 2 devices."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def results(dump) -> dict[int, dict]:
    return results_on((1, 2, 8), PROGRAM, dump)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_every_example_of_a_test_set_counts_once(results, count):
    """From 1 to 100,000 of them, whatever devices and batches divide."""
    for size in SIZES:
        guess, truth = examples(size)
        expected = confusion_matrix(truth, guess[:, 0], labels=range(CLASSES))
        confusion, loss = results[count][str(size)]
        assert confusion == expected.tolist(), size
        # 4 for the class predicted and 0 for the five others.
        right = np.trace(expected)
        every = size * np.log(np.exp(4) + 5) - 4 * right
        np.testing.assert_allclose(loss, every, rtol=1e-4, err_msg=str(size))


def test_ten_thousand_pictures_are_evaluated(results):
    confusion, loss = results[1]["mnist"]
    assert np.sum(confusion) == 10_000 and np.isfinite(loss)
    for count in (2, 8):
        # A tie of two logits may fall the other way.
        difference = np.abs(np.subtract(results[count]["mnist"][0], confusion)).sum()
        assert difference <= 4, count
        np.testing.assert_allclose(results[count]["mnist"][1], loss, rtol=1e-5)


def test_no_device_waits_for_another_in_a_test(results, dump):
    assert_no_waiting(dump, "jit__count_shares")


@pytest.mark.parametrize("count", [2, 8])
def test_cpu_devices_share_one_copy_of_what_they_are_given(results, count):
    """Which is not the caller's: what he writes into his array changes nothing."""
    assert results[count]["copies"] == [0.0] * count
    assert results[count]["places"] == 1


def test_a_batch_of_a_step_lies_on_one_cpu_device_a_process():
    assert devices.for_steps(256).devices.tolist() == jax.devices()[:1]
