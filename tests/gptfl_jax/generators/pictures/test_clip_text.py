import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.pictures import clip_text
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.released import torch_weights


@pytest.mark.parametrize("name", ["clip_text_1x", "clip_text_2x"])
def test_output_equals_torch(name):
    reference = ported_models.load(name)
    output = ported_models.clip_text_output(reference)
    assert ported_models.relative_error(output, reference["output"]) < 1e-4


def test_a_token_sees_only_those_before_it():
    network = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2
        )
    )
    tokens = jnp.array([[1, 2, 3, 4]])
    variables = jax.jit(network.init)(jax.random.key(0), tokens)
    apply = jax.jit(network.apply)
    before = apply(variables, tokens)
    after = apply(variables, jnp.array([[1, 2, 5, 4]]))
    np.testing.assert_allclose(before[:, :2], after[:, :2], atol=1e-6)
    assert np.abs(before - after)[:, 2:].min(-1).max() > 1e-3


def test_older_files_are_understood():
    """Their names have a prefix, and the positions are stored beside the weights."""
    reference = ported_models.load("clip_text_2x")
    network = CLIPTextModel(CLIPTextConfig.from_json(reference["config"]))
    tokens = jnp.asarray(reference["tokens"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    weights = ported_models.weights(reference["weights"])
    old = {f"text_model.{name}": value for name, value in weights.items()}
    old["text_model.embeddings.position_ids"] = np.arange(12)[None]
    params = torch_weights.from_torch(shapes, old, "x", clip_text.current_name)
    jax.tree.map(
        np.testing.assert_array_equal,
        params,
        torch_weights.from_torch(shapes, weights, "x"),
    )


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match="hidden_act = 'relu'"):
        CLIPTextConfig(hidden_act="relu")


def test_config_survives_its_file():
    config = CLIPTextConfig(hidden_size=16, hidden_act="gelu", pad_token_id=0)
    assert CLIPTextConfig.from_json(config.to_json()) == config
