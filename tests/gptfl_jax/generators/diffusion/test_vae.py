import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import vae
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.released import torch_weights


@pytest.mark.parametrize("name", ["vae", "vae_deep", "vae_mel"])
def test_outputs_equal_torch(name):
    reference = ported_models.load(name)
    outputs = ported_models.vae_outputs(reference)
    for key, output in zip(("mean", "log_variance", "decoded"), outputs, strict=True):
        assert ported_models.relative_error(output, reference[key]) < 1e-4


def test_log_variance_is_clipped():
    network = AutoencoderKL(VAEConfig(block_out_channels=(4,), norm_num_groups=2))
    images = jnp.ones((1, 4, 4, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    bias = np.array([100.0, -100, 5, -40, 100, -100, 5, -40], np.float32)
    params["quant_conv"]["bias"] = bias
    encode = jax.jit(functools.partial(network.apply, method="encode"))
    mean, log_variance = encode({"params": params}, images)
    np.testing.assert_array_equal(mean[0, 0, 0], bias[:4])
    np.testing.assert_array_equal(log_variance[0, 0, 0], [20, -30, 5, -30])


def test_projections_can_be_left_out():
    config = VAEConfig(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    network = AutoencoderKL(config)
    images = jnp.ones((1, 4, 4, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    assert set(shapes) == {"encoder", "decoder"}
    assert set(shapes["encoder"]["mid_block"]) == {"resnets_0", "resnets_1"}
    assert config.factor == 2


def test_names_and_shapes_of_2022_are_understood():
    """Attention was called otherwise, and its matrices could be 1x1 convolutions."""
    reference = ported_models.load("vae")
    network = AutoencoderKL(VAEConfig.from_json(reference["config"]))
    images = jnp.asarray(reference["images"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    weights = ported_models.weights(reference["weights"])
    new = torch_weights.from_torch(shapes, weights, "x")
    old_names = {
        "to_q": "query",
        "to_k": "key",
        "to_v": "value",
        "to_out.0": "proj_attn",
    }
    old = {}
    for name, value in weights.items():
        for today, before in old_names.items():
            if f"mid_block.attentions.0.{today}." in name:
                name = name.replace(today, before)
                value = value[:, :, None, None] if value.ndim == 2 else value
        old[name] = value
    assert old.keys() ^ weights.keys()
    params = torch_weights.from_torch(shapes, old, "x", vae.current_name)
    chex.assert_trees_all_equal(params, new)


def test_options_that_are_not_computed_are_refused():
    with pytest.raises(UserError, match=r"vae/config.json: shift_factor = 0.1"):
        VAEConfig.from_json({"shift_factor": 0.1}, "vae/config.json")
    with pytest.raises(UserError, match="down_block_types"):
        VAEConfig(block_out_channels=(4, 8))
