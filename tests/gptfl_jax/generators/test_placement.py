"""Where generators run: a process of its own, with several devices."""

import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from gptfl_jax import convolution
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import vae
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT

PROGRAM = """
import jax
jax.config.update("jax_num_cpu_devices", 3)
import numpy as np
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import vae
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
        places.append(convolution.places.is_outside.value)
        return x + 1

    program = placement.compiled(function, placement.mesh(), (SPLIT,))
    np.testing.assert_array_equal(program(np.zeros(2)), [1, 1])
    assert places == [True] and not convolution.places.is_outside.value
    assert EVERYWHERE != SPLIT


@pytest.mark.parametrize("rows, most, sizes", [(6, 4, [3, 3]), (5, 4, [1] * 5)])
def test_a_cpu_takes_a_batch_by_equal_parts(rows, most, sizes):
    seen = []

    def run(part):
        seen.append(len(part))
        return 2 * part

    result = placement.in_parts(run, jax.numpy.arange(rows), most)
    assert result.tolist() == [2 * row for row in range(rows)] and seen == sizes
    seen.clear()
    placement.in_parts(run, jax.numpy.arange(rows), rows)
    assert seen == [rows]


def test_pictures_of_a_released_autoencoder_are_decoded_one_by_one():
    def config(*channels):
        down, up = ("DownEncoderBlock2D",), ("UpDecoderBlock2D",)
        levels = len(channels)
        return vae.VAEConfig(
            block_out_channels=channels,
            down_block_types=down * levels,
            up_block_types=up * levels,
        )

    released = config(128, 256, 512, 512)
    assert [released.pictures_at_once(n, n) for n in (768, 256, 128)] == [1, 1, 4]
    assert config(32, 64).pictures_at_once(32, 32) == 256


def test_a_key_for_each_sample():
    key = jax.random.key(3)
    keys = placement.sample_keys(key, 4, "prompts")
    assert keys.shape == (4,)
    assert keys[2] == jax.random.fold_in(key, 2)
    assert (placement.sample_keys(keys, 4, "prompts") == keys).all()
    with pytest.raises(ValueError, match="4 keys for 3 prompts"):
        placement.sample_keys(keys, 3, "prompts")


def test_the_last_row_fills_the_last_device():
    assert placement.filled(5, 3).tolist() == [0, 1, 2, 3, 4, 4]
    assert placement.filled(6, 3).tolist() == list(range(6))
    assert placement.filled(1, 4).tolist() == [0, 0, 0, 0]
    rows = {"a": np.arange(6).reshape(3, 2), "b": None}
    placed = placement.split(rows, placement.mesh())
    np.testing.assert_array_equal(placed["a"], rows["a"])
    assert placed["b"] is None
