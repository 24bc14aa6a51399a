"""The largest programs, exported for accelerators in bfloat16 without one at hand.

Stable Diffusion 2.1 at 768 pixels, and a federated round of ResNet-50 at 224 pixels,
each on eight devices.
"""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("exported_at_full_size.py")

pytestmark = pytest.mark.long


def exported(what: str) -> dict:
    return json.loads(subprocess.check_output([sys.executable, str(PROGRAM), what]))


def test_stable_diffusion_2_1_at_768_pixels():
    found = exported("sampling")
    for platform in ("cuda", "tpu"):
        program = found[platform]
        assert program["platforms"] == [platform] and program["devices"] == 8
        assert program["custom calls"] == [] and program["types"] == ["bf16"]
        operations = program["operations"]
        # One for each kernel: none became a matrix product, as on a CPU.
        assert operations["convolution"] == found["convolutions"]
        assert "all_reduce" not in operations and "all_gather" not in operations
        # Attention over 96 x 96 positions takes all five heads of the two pictures of a
        # device and their empty prompts at once, a block of queries after another.
        assert "4x5x1152x1x9216xf32" in program["products"]
    (texts, once), (step, steps), (decoding, _) = found["flops"].values()
    assert (once, steps) == (1, 50)
    # Of 32 rows; 2.1 T a row is what a profiler of PyTorch's operations finds, too.
    assert 2.0e12 < step / 32 < 2.3e12
    assert texts < decoding < 2 * step


def test_a_round_of_resnet_50_at_224_pixels():
    found = exported("round")
    gradient, prediction = found["flops"]
    # 4.1 G products and sums a picture (arXiv 1512.03385: 3.8 G, of the version whose
    # first 1x1 has the stride), twice in a forward pass, less what padding saves.
    assert 7.5e9 < prediction / 32 < 8.3e9
    assert 2.8 < gradient / prediction < 3.1
    assert found["bytes_up"] == 4 * (23_508_032 + 100 * 2049 + 2 * 26_560)
    for platform in ("cuda", "tpu"):
        program = found[platform]
        assert program["platforms"] == [platform] and program["devices"] == 8
        assert program["custom calls"] == [] and program["types"] == ["bf16"]
        operations = program["operations"]
        # Forward, and the gradients of kernels and of all inputs but the pictures.
        assert operations["convolution"] == 3 * found["convolutions"] - 1
        # Sums of one type behind the loop, which XLA makes one all-reduce of
        # (gptfl_jax/fl/test_devices.py).
        # One of each array of weights, and a few of numbers and of a whole update.
        assert 0 < program["sums"] - found["leaves"] < 20
        assert program["sums that run once"] == program["sums"]
        assert program["types of sums"] == ["f32"]
        others = {"all_gather", "reduce_scatter", "collective_permute"}
        assert not others & set(operations)
