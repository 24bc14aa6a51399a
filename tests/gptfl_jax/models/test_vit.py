"""Vision transformers: what they count, their files, pictures of other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import vit


def shapes(side, num_classes=1000, **options):
    model = models.create("vit", num_classes, **options)
    pictures = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), pictures)


@pytest.mark.parametrize(
    ("side", "options", "expected"),
    [
        # As DeiT and torchvision count them.
        (224, {"size": "tiny"}, 5_717_416),
        (224, {"size": "small"}, 22_050_664),
        (224, {"size": "base"}, 86_567_656),
        # 64 squares in place of 196, of 4x4 pixels in place of 16x16.
        (32, {"patch": 4}, 5_717_416 - 132 * 192 - (16**2 - 4**2) * 3 * 192),
    ],
)
def test_number_of_parameters(side, options, expected):
    variables = shapes(side, **options)
    assert set(variables) == {"params"}
    assert training.number_of_parameters(variables) == expected


def random(variables):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables
    )


def test_files_of_both_names_say_which_model_they_are_of(tmp_path):
    options = {"size": "small", "patch": 8, "depth": 1}
    variables = random(shapes(16, 3, **options))
    theirs = models.released_weights("vit", variables)
    assert theirs["conv_proj.weight"].shape == (384, 3, 8, 8)
    assert theirs["encoder.pos_embedding"].shape == (1, 5, 384)
    # timm's names are ours, but for the head.
    timm = {
        "cls_token": theirs["class_token"],
        "pos_embed": theirs["encoder.pos_embedding"],
        "patch_embed.proj.weight": theirs["conv_proj.weight"],
        "patch_embed.proj.bias": theirs["conv_proj.bias"],
        "norm.weight": theirs["encoder.ln.weight"],
        "norm.bias": theirs["encoder.ln.bias"],
        "head.weight": theirs["heads.head.weight"],
        "head.bias": theirs["heads.head.bias"],
    }
    layer = "encoder.layers.encoder_layer_0"
    for ours, name in {
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "attn.qkv.": "self_attention.in_proj_",
        "attn.proj.": "self_attention.out_proj.",
        "mlp.fc1.": "mlp.0.",
        "mlp.fc2.": "mlp.3.",
    }.items():
        for leaf in ("weight", "bias"):
            timm[f"blocks.0.{ours}{leaf}"] = theirs[f"{layer}.{name}{leaf}"]
    for weights in (theirs, timm):
        save_file(weights, tmp_path / "x.safetensors")
        found, read = vit.read_weights(tmp_path / "x.safetensors")
        assert found == models.create("vit", 3, **options)
        jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_files_of_other_models_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, file)
    with pytest.raises(UserError, match="not a ViT by torchvision's or timm's names"):
        vit.read_weights(file)


def test_positions_of_other_sizes_are_interpolated():
    # One number that grows by the row and one by the column: so it does in between.
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij")
    squares = np.stack([rows, columns], -1).reshape(1, 16, 2)
    positions = np.concatenate([np.full((1, 1, 2), 9.0), squares], 1)
    new = vit.interpolated(jnp.asarray(positions, jnp.float32), (8, 3))
    assert new.shape == (1, 25, 2)
    np.testing.assert_array_equal(new[0, 0], [9, 9])
    grid = new[0, 1:].reshape(8, 3, 2)
    np.testing.assert_allclose(grid[3:5, :, 0], [[1.25] * 3, [1.75] * 3], atol=1e-6)
    np.testing.assert_allclose(grid[..., 1].mean(), 1.5, atol=1e-6)
    same = jnp.asarray(positions)
    assert vit.interpolated(same, (2, 8)) is same
    with pytest.raises(UserError, match="of 5 squares, which are no square"):
        vit.interpolated(jnp.zeros((1, 6, 2)), (2, 2))


def test_a_file_for_pictures_of_another_size_is_fitted(tmp_path):
    options = {"patch": 8, "depth": 1}
    large = random(shapes(32, 3, **options))
    save_file(models.released_weights("vit", large), tmp_path / "x.safetensors")
    small = shapes(16, 3, **options)
    read, whole = models.load_weights("vit", small, tmp_path / "x.safetensors")
    assert whole
    expected = vit.interpolated(jnp.asarray(large["params"]["pos_embed"]), (2, 2))
    np.testing.assert_array_equal(read["params"].pop("pos_embed"), expected)
    del large["params"]["pos_embed"]
    jax.tree.map(np.testing.assert_array_equal, read, large)


def test_pictures_that_cannot_be_cut_are_refused():
    with pytest.raises(UserError, match="patch = 16: pictures of 20x20 pixels"):
        shapes(20)
