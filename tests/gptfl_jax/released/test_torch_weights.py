import gzip
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import vae
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures import clip_text, stable_diffusion
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks
from gptfl_jax.released import torch_weights


def as_released(name, shapes):
    """The key list of the files on the hub: under the names of 2022.

    Those of the text encoder have a prefix and the positions beside them; the
    autoencoder's attention is of linear layers under other names.
    """
    if name == "text_encoder":
        shapes = {f"text_model.{key}": shape for key, shape in shapes.items()}
        return shapes | {"text_model.embeddings.position_ids": [1, 77]}
    if name == "vae":
        older = {"to_q": "query", "to_k": "key", "to_v": "value"}
        older |= {"to_out.0": "proj_attn"}
        for today, before in older.items():
            shapes = {
                key.replace(f"attentions.0.{today}.", f"attentions.0.{before}."): shape
                for key, shape in shapes.items()
            }
    return shapes


def networks_of(configs):
    return Networks(
        CLIPTextModel(CLIPTextConfig.from_json(configs["text_encoder"])),
        UNet2DCondition(UNetConfig.from_json(configs["unet"])),
        AutoencoderKL(VAEConfig.from_json(configs["vae"])),
    )


@pytest.mark.parametrize(
    "release, counts",
    [
        # Counted with torch, as published: 860 M + 84 M + 123 M, 866 M + 84 M + 340 M.
        (
            "stable_diffusion_1_5",
            {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
        ),
        (
            "stable_diffusion_2_1",
            {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
        ),
    ],
)
def test_every_weight_of_a_release_has_its_place(release, counts):
    path = ported_models.FOLDER / f"{release}.json.gz"
    recorded = json.loads(gzip.decompress(path.read_bytes()))
    recorded.pop("versions")
    networks = networks_of({name: part["config"] for name, part in recorded.items()})
    for name, shapes in networks.shapes().items():
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == counts[name]
        ours = {}
        for path, leaf in jax.tree.flatten_with_path(shapes)[0]:
            names = tuple(key.key for key in path)
            shape = leaf.shape
            if names[-1] == "kernel":
                shape = (shape[-1], shape[-2], *shape[:-2])
            ours[torch_weights.torch_name(names)] = list(shape)
        assert ours == recorded[name]["weights"]
        # Views of one zero: a release has gigabytes.
        files = {
            key: np.broadcast_to(np.float32(0), shape)
            for key, shape in as_released(name, recorded[name]["weights"]).items()
        }
        rename = stable_diffusion._COMPONENTS[name].current_name
        params = torch_weights.from_torch(shapes, files, name, rename)
        assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


def test_names_of_releases_map_onto_todays():
    assert (
        clip_text.current_name("text_model.encoder.layers.0.mlp.fc1.bias")
        == "encoder.layers.0.mlp.fc1.bias"
    )
    assert clip_text.current_name("text_model.embeddings.position_ids") is None
    assert (
        vae.current_name("decoder.mid_block.attentions.0.proj_attn.weight")
        == "decoder.mid_block.attentions.0.to_out.0.weight"
    )


def test_layouts_by_hand():
    params = {
        "blocks_10": {"linear_1": {"kernel": np.array([[1, 2, 3], [4, 5, 6]])}},
        "conv1": {"kernel": np.arange(24).reshape(1, 2, 3, 4), "bias": np.arange(4)},
        "norm": {"scale": np.ones(2)},
        "token": {"embedding": np.eye(3)},
    }
    weights = torch_weights.to_torch(params)
    assert set(weights) == {
        "blocks.10.linear_1.weight",
        "conv1.weight",
        "conv1.bias",
        "norm.weight",
        "token.weight",
    }
    np.testing.assert_array_equal(
        weights["blocks.10.linear_1.weight"], [[1, 4], [2, 5], [3, 6]]
    )
    # Output 3, input 2 of the window's element (0, 1): number 12 + 2 * 4 + 3.
    assert weights["conv1.weight"].shape == (4, 3, 1, 2)
    assert weights["conv1.weight"][3, 2, 0, 1] == 23
    shapes = jax.eval_shape(lambda: params)
    back = torch_weights.from_torch(shapes, weights, "x")
    chex.assert_trees_all_equal(back, params)
    half = torch_weights.from_torch(shapes, weights, "x", dtype=jnp.bfloat16)
    assert half["norm"]["scale"].dtype == jnp.bfloat16


def test_a_matrix_and_a_1x1_convolution_are_the_same():
    matrix, conv = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3, 1, 1)
    for shape, weight in (((3, 2), conv), ((1, 1, 3, 2), matrix)):
        shapes = {"proj_in": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}
        params = torch_weights.from_torch(shapes, {"proj_in.weight": weight}, "x")
        np.testing.assert_array_equal(
            params["proj_in"]["kernel"], matrix.T.reshape(shape)
        )


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, "model.bin has no weights a.weight"),
        (
            {"a.weight": np.ones((3, 2)), "b.bias": np.ones(1)},
            "model.bin has unknown weights b.bias",
        ),
        ({"a.weight": np.ones((2, 3))}, r"model.bin: a.weight has shape \(2, 3\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    shapes = {"a": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}
    with pytest.raises(UserError, match=message):
        torch_weights.from_torch(shapes, weights, "model.bin")
