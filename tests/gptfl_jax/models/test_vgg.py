import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import vgg
from gptfl_jax.nn import adaptive_avg_pool
from gptfl_jax.released import torch_weights

TORCH_NAMES = {ours: theirs for theirs, ours in vgg.RELEASED.items()}


def shapes(side, num_classes=1000, **options):
    model = models.create("vgg", num_classes, **options)
    pictures = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), pictures)


@pytest.mark.parametrize(
    ("side", "options", "expected"),
    [
        # As torchvision counts them.
        (224, {"depth": 11}, 132_863_336),
        (224, {"depth": 11, "norm": "batch"}, 132_868_840),
        (224, {"depth": 13}, 133_047_848),
        (224, {"depth": 16}, 138_357_544),
        (32, {"depth": 16}, 138_357_544),
        (224, {"depth": 16, "norm": "batch"}, 138_365_992),
        (224, {"depth": 19}, 143_667_240),
        # The convolutions alone, and 513 x 1,000.
        (32, {"pooled": 1, "hidden": 0}, 14_714_688 + 513_000),
    ],
)
def test_number_of_parameters(side, options, expected):
    variables = shapes(side, **options)
    assert training.number_of_parameters(variables) == expected
    assert ("batch_stats" in variables) == (options.get("norm") == "batch")


@pytest.mark.parametrize(("height", "width", "size"), [(1, 1, 7), (5, 6, 3), (4, 9, 4)])
def test_adaptive_pool_by_its_windows(height, width, size):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    expected = np.zeros((2, size, size, 3))
    for i in range(size):
        for j in range(size):
            rows = slice(i * height // size, -(-(i + 1) * height // size))
            columns = slice(j * width // size, -(-(j + 1) * width // size))
            expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    np.testing.assert_allclose(
        adaptive_avg_pool(jnp.asarray(x), size), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    "options", [{"depth": 19}, {"depth": 11, "norm": "batch"}, {"norm": "group"}]
)
def test_a_file_says_which_model_it_is_of(tmp_path, options):
    options = {"width": 2, "hidden": 4, **options}
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        shapes(32, 5, **options),
    )
    weights = {}
    for name, value in torch_weights.variables_to_torch(variables).items():
        layer, _, leaf = name.rpartition(".")
        weights[f"{TORCH_NAMES.get(layer, layer)}.{leaf}"] = value
    assert {"features.0.bias", "classifier.0.weight", "classifier.6.bias"} <= {*weights}
    save_file(weights, tmp_path / "x.safetensors")
    found, read = vgg.read_weights(tmp_path / "x.safetensors")
    assert found == models.create("vgg", 5, **options)
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_what_is_no_vgg_is_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, file)
    with pytest.raises(UserError, match="x.safetensors: not a VGG by torchvision's"):
        vgg.read_weights(file)
    with pytest.raises(UserError, match="takes pictures from 32x32 pixels"):
        shapes(31)
