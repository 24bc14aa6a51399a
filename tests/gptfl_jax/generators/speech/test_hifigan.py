import chex
import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax import convolution
from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech import hifigan
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("vocoder", "patches"),
        ("vocoder", "winograd_strips"),
        ("vocoder_odd", "patches"),
    ],
)
def test_output_equals_torch_and_padding_changes_nothing(name, form):
    """Of two rows cut to 9 and 6 frames, each is what torch makes of it alone."""
    reference = ported_models.load(name)
    short = int(reference["short"])
    reference["mels"][1] = reference["mels"][0]
    with convolution.form(form):
        waves = ported_models.vocoder_waves(reference, jnp.array([9, short]))
    assert ported_models.relative_error(waves[0], reference["waves"][0]) < 1e-4
    samples = HifiGanConfig.from_json(reference["config"]).num_samples(short)
    alone = waves[1, :samples]
    assert ported_models.relative_error(alone, reference["short_wave"]) < 1e-4
    assert not np.asarray(waves[1, samples:]).any()


def test_numbers_of_samples():
    """SpeechT5 makes 256 of a frame, AudioLDM 32 more than 160 of one."""
    assert HifiGanConfig().num_samples(7) == 7 * 256
    audioldm = HifiGanConfig(
        upsample_rates=(5, 4, 2, 2, 2), upsample_kernel_sizes=(16, 16, 8, 4, 4)
    )
    np.testing.assert_array_equal(
        audioldm.num_samples(np.array([1, 50])), [160 + 32, 50 * 160 + 32]
    )


@pytest.mark.parametrize("form", hifigan._WEIGHT_NORMS)
def test_normalised_weights_are_multiplied_out(form):
    length, direction = form
    v = np.array([[[3.0], [4.0]], [[0.0], [2.0]]], np.float32)
    g = np.array([10.0, 3.0], np.float32).reshape(2, 1, 1)
    plain = hifigan.without_weight_norm(
        {f"a.0.{length}": g, f"a.0.{direction}": v, "a.0.bias": np.ones(2)}
    )
    assert set(plain) == {"a.0.weight", "a.0.bias"}
    np.testing.assert_allclose(plain["a.0.weight"], [[[6.0], [8.0]], [[0.0], [3.0]]])


def test_weights_survive_their_file():
    network, variables = ported_models.vocoder(ported_models.load("vocoder"))
    again = hifigan.from_torch(network, hifigan.to_torch(variables), "x")
    chex.assert_trees_all_equal(again, variables)
    half = hifigan.from_torch(network, hifigan.to_torch(variables), "x", jnp.bfloat16)
    assert {str(x.dtype) for x in jax.tree.leaves(half["params"])} == {"bfloat16"}
    assert half["statistics"]["mel_scale"].dtype == np.float32
    mels = jnp.ones((1, 3, 6))
    waves = jax.jit(network.clone(dtype=jnp.bfloat16).apply)(half, mels)
    reference = jax.jit(network.apply)(variables, mels)
    assert waves.dtype == jnp.float32
    assert ported_models.relative_error(waves, reference) < 0.05


def test_number_of_parameters_of_the_release():
    params = hifigan.shapes(HifiGan(HifiGanConfig()))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 12_656_257


def test_number_of_parameters_of_audioldm():
    config = HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=1024,
        upsample_rates=(5, 4, 2, 2, 2),
        upsample_kernel_sizes=(16, 16, 8, 4, 4),
        normalize_before=False,
    )
    params = hifigan.shapes(HifiGan(config))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 55_264_897


def test_config():
    config = HifiGanConfig(model_in_dim=6, resblock_dilation_sizes=((1, 2),) * 3)
    assert HifiGanConfig.from_json(config.to_json()) == config
    with pytest.raises(UserError, match=r"upsample_kernel_sizes = \(8,\)"):
        HifiGanConfig(upsample_kernel_sizes=(8,))
    with pytest.raises(UserError, match="x.json: model_type = 'speecht5'"):
        HifiGanConfig.from_json({"model_type": "speecht5"}, "x.json")
