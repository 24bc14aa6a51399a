"""Test sets on 1, 2 and 8 devices made of one CPU, each in its own process."""

import pathlib
from unittest import mock

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


@pytest.mark.parametrize("count", [1, 2, 8])
def test_rows_in_files_are_evaluated_alike(results, count):
    confusion, loss = results[count]["in files"]
    assert confusion == results[count]["2000"][0]
    np.testing.assert_allclose(loss, results[count]["2000"][1], rtol=1e-5)


def test_examples_sent_ahead_of_steps_give_what_those_on_devices_do(results):
    one, eight = results[1]["trained"], results[8]["trained"]
    assert one[0] == one[1] and eight[0] == eight[1]
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-6)


def test_no_device_waits_for_another_in_a_test(results, dump):
    assert_no_waiting(dump, "jit__count_shares")


@pytest.mark.parametrize("count", [2, 8])
def test_cpu_devices_share_one_copy_of_what_they_are_given(results, count):
    """Which is not the caller's: what he writes into his array changes nothing."""
    assert results[count]["copies"] == [0.0] * count
    assert results[count]["places"] == 1


def test_a_batch_of_a_step_lies_on_one_cpu_device_a_process():
    assert devices.for_steps(256).devices.tolist() == jax.devices()[:1]


def test_free_memory_is_that_of_the_fullest_device_or_a_share_of_the_machine():
    def mesh(*stats):
        several = [mock.Mock(memory_stats=lambda s=s: s) for s in stats]
        return mock.Mock(spec=jax.sharding.Mesh, local_devices=several)

    two = (
        {"bytes_limit": 100, "bytes_in_use": 30},
        {"bytes_limit": 90, "bytes_in_use": 40},
    )
    assert devices.free_memory(mesh(*two)) == 50
    with open("/proc/meminfo") as file:
        total = 1024 * int(file.readline().split()[1])
    assert devices.free_memory(mesh(None, None)) == total // 2


class InFiles:
    """Stands for an array, as rows in files do."""

    def __init__(self, array):
        self.array, self.read = array, []
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.read.append(rows)
        return self.array[rows]

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_examples_may_take_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda mesh: 1600)
    array = np.zeros((8, 100), np.uint8)
    assert devices.room_for(array, None) == (True, 800, 1600)
    assert devices.room_for((array, array[:1]), None) == (False, 900, 1600)
    assert devices.room_for((array, array), None, shares=2).enough
    # Of a CPU's memory the system has what was read of files, too.
    assert not devices.room_for(InFiles(array), None).enough
    assert devices.room_for(InFiles(array[:1]), None).enough
    monkeypatch.setattr(devices.jax, "default_backend", lambda: "gpu")
    assert devices.room_for(InFiles(array), None).enough


def test_rows_in_files_are_put_on_devices_some_at_a_time():
    rows = InFiles(np.arange(33, dtype=np.int32).reshape(11, 3))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = devices.put_in_parts(rows, here, most_bytes=4 * 12 + 1)
    np.testing.assert_array_equal(placed, rows.array)
    assert rows.read == [slice(0, 4), slice(4, 8), slice(7, 11)]
    np.testing.assert_array_equal(devices.replicate(rows, None), rows.array)
