"""Where generators run: a process of its own, with several devices."""

import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from gptfl_jax import convolution
from gptfl_jax.generators import placement
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT

PROGRAM = """
import jax
jax.config.update("jax_num_cpu_devices", 3)
import numpy as np
from gptfl_jax.generators import placement
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT

for devices in (None, jax.local_devices(), jax.local_devices()[1:]):
    mesh = placement.mesh(devices)
    double = placement.compiled(lambda a, x: a * x, mesh, (EVERYWHERE, SPLIT))
    result = double(np.float32(2), np.arange(6, dtype=np.float32))
    assert result.tolist() == [0, 2, 4, 6, 8, 10]
    print(*sorted(device.id for device in result.sharding.device_set))
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the devices of a CPU")
def test_one_cpu_device_unless_others_are_named():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["0", "0 1 2", "1 2"]


def test_all_devices_of_other_kinds(monkeypatch):
    devices = [types.SimpleNamespace(platform="gpu") for _ in range(2)]
    given = []
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    one = placement.Mesh(np.asarray(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(placement, "Mesh", lambda *args: given.append(args) or one)
    placement.mesh()
    ((chosen, axes),) = given
    assert chosen.tolist() == devices and axes == ("data",)


def test_programs_are_outside_of_loops():
    places = []

    def function(x):
        places.append(convolution._is_outside.value)
        return x + 1

    program = placement.compiled(function, placement.mesh(), (SPLIT,))
    np.testing.assert_array_equal(program(np.zeros(2)), [1, 1])
    assert places == [True] and not convolution._is_outside.value
    assert EVERYWHERE != SPLIT
