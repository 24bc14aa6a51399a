"""Low-rank updates as a LoRA file of diffusers that our own reader adds again."""

import jax
import numpy as np

from gptfl_jax.released import hub, lora, torch_weights
from train.few_steps import low_rank


def parameters():
    generator = np.random.default_rng(0)

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    return {
        "conv_in": {"kernel": draw(3, 3, 2, 8), "bias": draw(8)},
        "down_blocks_0": {"attn": {"to_q": {"kernel": draw(5, 6)}}},
        "norm": {"scale": draw(8)},
    }


def test_updates_begin_at_zero_and_have_no_more_than_the_weights_rank():
    params = parameters()
    updates = low_rank.init(jax.random.key(0), params, rank=7)
    shapes = {
        name: (each["down"].shape, each["up"].shape) for name, each in updates.items()
    }
    assert shapes == {
        "conv_in/kernel": ((3, 3, 2, 7), (7, 8)),
        "down_blocks_0/attn/to_q/kernel": ((5, 5), (5, 6)),
    }
    merged = low_rank.merge(params, updates)
    jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merged_is_what_the_file_adds(tmp_path):
    params = parameters()
    updates = low_rank.init(jax.random.key(0), params, rank=3)
    generator = np.random.default_rng(1)
    updates = jax.tree.map(
        lambda x: generator.normal(size=x.shape).astype(np.float32), updates
    )
    file = tmp_path / "lora.safetensors"
    hub.write_weights(file, low_rank.to_torch(updates, "unet"))
    layers = torch_weights.layers(jax.eval_shape(lambda: params))
    found = lora.read(file, {"unet": layers})["unet"]
    assert set(found) == set(layers) == {"conv_in", "down_blocks.0.attn.to_q"}
    added = lora.merged(torch_weights.to_torch(params), found, 1.0)
    expected = torch_weights.to_torch(low_rank.merge(params, updates))
    for name, value in expected.items():
        np.testing.assert_allclose(added[name], value, atol=1e-5)
