import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.sounds import clap_text
from gptfl_jax.generators.sounds.clap_text import CLAPTextConfig, CLAPTextModel


def test_output_equals_torch():
    reference = ported_models.load("clap_text")
    output = ported_models.clap_text_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4
    np.testing.assert_allclose(np.linalg.norm(output, axis=-1), 1, rtol=1e-6)


def test_filling_up_changes_nothing():
    reference = ported_models.load("clap_text")
    more = np.pad(reference["tokens"], ((0, 0), (0, 5)), constant_values=1)
    output = ported_models.clap_text_output(reference | {"tokens": more})
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


def test_number_of_parameters_of_the_release():
    network = CLAPTextModel(CLAPTextConfig())
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 125_302_016
    assert CLAPTextConfig().longest == 512


def test_what_is_no_weight_is_left_out():
    assert clap_text.current_name("text_model.embeddings.position_ids") is None
    assert clap_text.current_name("text_model.embeddings.token_type_ids") is None
    name = "text_model.embeddings.token_type_embeddings.weight"
    assert clap_text.current_name(name) == name


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_act": "silu"},
        {"projection_hidden_act": "gelu"},
        {"hidden_size": 10},
        {"max_position_embeddings": 2},
    ],
)
def test_options_that_are_not_computed_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=f"x.json: {name} = "):
        CLAPTextConfig.from_json(options, "x.json")


def test_config_survives_its_file():
    config = CLAPTextConfig(hidden_size=24, layer_norm_eps=1e-5, pad_token_id=0)
    assert CLAPTextConfig.from_json(config.to_json()) == config
