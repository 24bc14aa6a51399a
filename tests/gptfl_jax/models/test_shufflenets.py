"""ShuffleNet and ShuffleNetV2: what they count, and what files they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import shufflenet_v2


def shapes(name, num_classes, side=32, **options):
    model = models.create(name, num_classes, **options)
    pictures = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), pictures)


@pytest.mark.parametrize(
    ("name", "classes", "options", "expected"),
    [
        # As torchvision counts them.
        ("shufflenet_v2", 1000, {}, 2_278_604),
        ("shufflenet_v2", 1000, {"width": 0.5}, 1_366_792),
        ("shufflenet_v2", 1000, {"width": 1.5}, 3_503_624),
        ("shufflenet_v2", 1000, {"width": 2.0}, 7_393_996),
        ("shufflenet_v2", 1000, {"stem": "cifar", "norm": "group"}, 2_278_604),
        # As the original's counts them.
        ("shufflenet", 10, {}, 887_582),
        ("shufflenet", 10, {"norm": "instance"}, 887_582),
    ],
)
def test_number_of_parameters(name, classes, options, expected):
    variables = shapes(name, classes, **options)
    assert training.number_of_parameters(variables) == expected
    batch_norm = options.get("norm", "batch") == "batch"
    assert ("batch_stats" in variables) == batch_norm


@pytest.mark.parametrize(("stem", "halvings"), [("imagenet", 5), ("cifar", 3)])
def test_how_often_the_picture_is_halved(stem, halvings):
    model = models.create("shufflenet_v2", 10, stem=stem, width=0.5)
    pictures = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    _, state = jax.eval_shape(
        lambda x: model.apply(
            model.init(jax.random.key(0), x), x, capture_intermediates=True
        ),
        pictures,
    )
    (last,) = state["intermediates"]["stage4_3"]["__call__"]
    assert last.shape == (1, 64 >> halvings, 96 >> halvings, 192)


def test_a_file_says_which_model_it_is_of(tmp_path):
    options = {"width": 1.5, "norm": "none"}
    variables = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, np.float32),
        shapes("shufflenet_v2", 5, **options),
    )
    file = tmp_path / "x.safetensors"
    save_file(models.released_weights("shufflenet_v2", variables), file)
    found, read = shufflenet_v2.read_weights(file)
    assert found == models.create("shufflenet_v2", 5, **options)
    jax.tree.map(np.testing.assert_array_equal, read, variables)
    save_file({"fc.weight": np.zeros((4, 3), np.float32)}, file)
    with pytest.raises(UserError, match="not a ShuffleNetV2 by torchvision's names"):
        shufflenet_v2.read_weights(file)


def test_widths_that_the_paper_does_not_have_are_refused():
    with pytest.raises(UserError, match="width = 0.7: takes 0.5, 1.0, 1.5 or 2.0"):
        shapes("shufflenet_v2", 5, width=0.7)
