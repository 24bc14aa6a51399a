import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import mobilenet_v2
from gptfl_jax.released import torch_weights


def shapes(num_classes=1000, **options):
    model = models.create("mobilenet_v2", num_classes, **options)
    pictures = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), pictures)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # As torchvision counts them.
        ({}, 3_504_872),
        ({"stem": "cifar"}, 3_504_872),
        ({"norm": "group"}, 3_504_872),
        ({"width": 1.4}, 6_108_776),
        # 17,056 scales and as many biases.
        ({"norm": "none"}, 3_504_872 - 2 * 17_056),
    ],
)
def test_number_of_parameters(options, expected):
    variables = shapes(**options)
    assert training.number_of_parameters(variables) == expected
    batch_norm = options.get("norm", "batch") == "batch"
    assert ("batch_stats" in variables) == batch_norm


@pytest.mark.parametrize(("stem", "halvings"), [("imagenet", 5), ("cifar", 3)])
def test_how_often_the_picture_is_halved(stem, halvings):
    model = models.create("mobilenet_v2", 10, stem=stem)
    pictures = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    _, state = jax.eval_shape(
        lambda x: model.apply(
            model.init(jax.random.key(0), x), x, capture_intermediates=True
        ),
        pictures,
    )
    (last,) = state["intermediates"]["features_18"]["__call__"]
    assert last.shape == (1, 64 >> halvings, 96 >> halvings, 1280)


@pytest.mark.parametrize("options", [{"width": 0.35}, {"width": 0.1, "norm": "none"}])
def test_a_file_says_which_model_it_is_of(tmp_path, options):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        shapes(5, **options),
    )
    weights = torch_weights.variables_to_torch(variables)
    for leaf in ("weight", "bias"):
        weights[f"classifier.1.{leaf}"] = weights.pop(f"classifier.{leaf}")
    names = {"features.0.0.weight", "features.1.conv.1.weight"}
    assert {*names, "features.18.0.weight", "features.17.conv.2.weight"} <= {*weights}
    save_file(weights, tmp_path / "x.safetensors")
    found, read = mobilenet_v2.read_weights(tmp_path / "x.safetensors")
    assert found == models.create("mobilenet_v2", 5, **options)
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_files_of_other_models_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, file)
    with pytest.raises(UserError, match="not a MobileNetV2 by torchvision's names"):
        mobilenet_v2.read_weights(file)
