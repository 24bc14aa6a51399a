import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import unet
from gptfl_jax.generators.diffusion.blocks import sinusoidal_embedding
from gptfl_jax.generators.diffusion.unet import (
    UNet2DCondition,
    UNetConfig,
    guidance_embedding,
)

SMALL = UNetConfig(
    block_out_channels=(8,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("UpBlock2D",),
    mid_block_type=None,
    layers_per_block=1,
    attention_head_dim=2,
    norm_num_groups=4,
)


@pytest.mark.parametrize("name", ["unet_1x", "unet_2x", "unet_other", "unet_audioldm"])
def test_output_equals_torch(name):
    reference = ported_models.load(name)
    output = ported_models.unet_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


def test_one_timestep_for_all_equals_one_each():
    network = UNet2DCondition(SMALL)
    latents = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    params = jax.jit(network.init)(jax.random.key(1), latents, jnp.zeros(1), None)
    apply = jax.jit(network.apply)
    one = apply(params, latents, jnp.array([700.0]), None)
    each = apply(params, latents, jnp.array([700.0, 700.0]), None)
    np.testing.assert_allclose(one, each, atol=1e-5)
    other = apply(params, latents, jnp.array([700.0, 30.0]), None)
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    assert np.abs(one[1] - other[1]).max() > 1e-3


def test_keys_and_values_of_the_context_can_be_computed_before():
    network = UNet2DCondition(SMALL)
    latents, context = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 4, 4, 4), (2, 5, 6)])
    )
    inputs = (latents, jnp.array([700.0]), context)
    params = jax.jit(network.init)(jax.random.key(1), *inputs)["params"]
    projected = unet.project_context(params, context)
    assert len(jax.tree.leaves(projected)) == 2
    apply = jax.jit(network.apply)
    expected = apply({"params": params}, *inputs)
    found = apply({"params": params, "context": projected}, *inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    other = jax.tree.map(lambda x: 2 * x, projected)
    other = apply({"params": params, "context": other}, *inputs)
    assert np.abs(other - expected).max() > 1e-3


def test_bfloat16_follows_float32():
    reference = ported_models.load("unet_2x")
    config = UNetConfig.from_json(reference["config"])
    inputs = [jnp.asarray(reference[n]) for n in ("latents", "timesteps", "context")]
    network = UNet2DCondition(config, dtype=jnp.bfloat16)
    params = ported_models.parameters(network, reference["weights"], inputs)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    output = jax.jit(network.apply)({"params": params}, *inputs)
    assert output.dtype == jnp.bfloat16
    error = ported_models.relative_error(
        output.astype(jnp.float32), reference["output"]
    )
    assert 1e-4 < error < 0.05


def test_without_context_the_second_attention_is_to_itself():
    network = UNet2DCondition(SMALL)
    inputs = (jnp.ones((1, 4, 4, 4)), jnp.zeros(1), None)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]
    assert "mid_block" not in shapes
    block = shapes["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]
    assert block["attn2"]["to_k"]["kernel"].shape == (8, 8)


def test_added_classes_shift_the_time_embedding():
    """A class whose projection is zero is none; a class is its row of the matrix."""
    config = dataclasses.replace(
        SMALL,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=2,
    )
    network = UNet2DCondition(config)
    latents = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    inputs = (latents, jnp.array([700.0]), None)
    params = jax.jit(network.init)(jax.random.key(1), *inputs, jnp.ones((2, 2)))
    params = jax.tree.map(np.array, params)["params"]
    kernel = np.zeros((2, 32), np.float32)
    kernel[1] = 3
    params["class_embedding"] = {"kernel": kernel, "bias": np.zeros(32, np.float32)}
    output = jax.jit(network.apply)({"params": params}, *inputs, jnp.eye(2))
    del params["class_embedding"]
    plain = jax.jit(UNet2DCondition(SMALL).apply)
    np.testing.assert_allclose(
        output[0], plain({"params": params}, *inputs)[0], atol=1e-5
    )
    params["time_embedding"]["linear_2"]["bias"] += 3
    np.testing.assert_allclose(
        output[1], plain({"params": params}, *inputs)[1], atol=1e-5
    )
    with pytest.raises(ValueError, match="simple_projection.*takes classes"):
        network.apply({"params": params}, *inputs)


def test_the_guidance_scale_as_sines_and_cosines_by_hand():
    """1000 (scale - 1) at frequencies 1 and 1/10,000."""
    found = guidance_embedding(jnp.float32([1.0, 2.5]), 4)
    angles = np.array([[0, 0], [1500, 0.15]])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_time_condition_is_taken_where_the_config_has_one():
    inputs = jnp.zeros((1, 4, 4, 4)), jnp.zeros(1), None
    with pytest.raises(ValueError, match="time_cond_proj_dim = None: takes no time"):
        UNet2DCondition(SMALL).init(
            jax.random.key(0), *inputs, time_condition=jnp.zeros((1, 6))
        )
    config = dataclasses.replace(SMALL, time_cond_proj_dim=6)
    with pytest.raises(ValueError, match="time_cond_proj_dim = 6: takes a time"):
        UNet2DCondition(config).init(jax.random.key(0), *inputs)


@pytest.mark.parametrize(
    "option, value",
    [
        ("addition_embed_type", "text_time"),
        ("class_embed_type", "projection"),
        ("act_fn", "gelu"),
        ("an_option_of_the_future", 3),
    ],
)
def test_options_that_are_not_computed_are_refused(option, value):
    with pytest.raises(UserError, match=rf"unet/config\.json: {option} = '?{value}"):
        UNetConfig.from_json({option: value}, "unet/config.json")


@pytest.mark.parametrize(
    "options",
    [
        {"down_block_types": ("DownBlock2D", "AttnDownBlock2D")},
        {"up_block_types": ("UpBlock2D",)},
        {"layers_per_block": (1, 2, 3)},
        {"attention_head_dim": (1,)},
        {"mid_block_type": "UNetMidBlock2D"},
        {"cross_attention_dim": (8,)},
        {"class_embed_type": "simple_projection"},
        {"class_embeddings_concat": True},
    ],
)
def test_options_that_do_not_fit_together_are_refused(options):
    (name,) = options
    valid = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
    }
    with pytest.raises(UserError, match=name):
        UNetConfig(**valid | options)


def test_config_survives_its_file():
    config = UNetConfig.from_json(ported_models.load("unet_other")["config"])
    written = json.loads(json.dumps(config.to_json()))
    assert UNetConfig.from_json(written) == config
    assert dataclasses.asdict(config)["freq_shift"] == 1


def test_time_embedding_by_hand():
    embedding = sinusoidal_embedding(
        jnp.array([2.0]), 4, cosine_first=True, frequency_shift=0
    )
    # Frequencies 1 and 10000 ** -0.5.
    expected = [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)]
    np.testing.assert_allclose(embedding[0], expected, rtol=1e-6)
    shifted = sinusoidal_embedding(
        jnp.array([2.0]), 5, cosine_first=False, frequency_shift=1
    )
    expected = [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4), 0]
    np.testing.assert_allclose(shifted[0], expected, rtol=1e-6)
