"""The same rounds on 1, 2 and 8 devices made of one CPU, each in its own process."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.cpu_devices import assert_no_waiting, results_on

PROGRAM = pathlib.Path(__file__).with_name("rounds_on_devices.py")


@pytest.fixture(scope="module")
def dump(tmp_path_factory) -> pathlib.Path:
    """Where XLA writes the programs of the run on 2 devices."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def results(dump) -> dict[int, dict]:
    return results_on((1, 2, 8), PROGRAM, dump)


@pytest.mark.parametrize("devices", [2, 8])
def test_weights_and_metrics_do_not_depend_on_the_devices(results, devices):
    assert results[devices].keys() == results[1].keys()
    for case, expected in results[1].items():
        found = results[devices][case]
        for name in ("params", "own"):
            np.testing.assert_allclose(
                found[name], expected[name], rtol=0, atol=1e-5, err_msg=f"{case} {name}"
            )
        for name, value in expected["metrics"].items():
            np.testing.assert_allclose(
                found["metrics"][name], value, rtol=1e-4, err_msg=f"{case} {name}"
            )


@pytest.mark.parametrize("devices", [2, 8])
def test_personalisation_does_not_depend_on_the_devices(results, devices):
    for case in ("vmap", "scaffold"):
        total, before, after = results[1][case]["counts"]
        assert total == [50, 33, 20, 14, 9, 12, 7] and before != after
        found = results[devices][case]
        assert found["counts"] == [total, before, after], case
        assert found["compilations_of_tests"] == 1, case


@pytest.mark.parametrize("devices, expected", [(1, ""), (2, "all-reduce")])
def test_a_round_has_one_all_reduce(devices, expected):
    """XLA makes one of all sums, and nothing else is sent between devices.

    Exported for "cuda" and "tpu", it asks for nothing but sums.
    """
    program = PROGRAM.with_name("round_collectives.py")
    found = subprocess.check_output(
        [sys.executable, str(program), str(devices)], text=True
    )
    assert found.splitlines() == [expected, expected.replace("-", "_")]


def test_cpu_devices_of_a_process_never_wait_for_each_other(results, dump):
    """No program of rounds, tests of clients and streaming has a collective."""
    assert_no_waiting(dump, "jit_train_apart", "jit_update_apart", "jit_evaluate")


def test_a_round_is_compiled_once_on_a_mesh(results):
    for devices, cases in results.items():
        for case, result in cases.items():
            halves = 1 if devices > 1 else 0
            assert result["compilations"] == [1, halves], (devices, case)


def test_streamed_rounds_are_those_of_data_on_the_devices(results):
    for devices, cases in results.items():
        resident, streamed = cases["scaffold"], cases["streamed scaffold"]
        for name in ("params", "own"):
            np.testing.assert_allclose(
                streamed[name], resident[name], rtol=0, atol=1e-6, err_msg=str(devices)
            )
        for name, value in streamed["metrics"].items():
            np.testing.assert_allclose(
                value, resident["metrics"][name], rtol=1e-5, err_msg=f"{devices} {name}"
            )
