"""LoRA weights: every form of their names, by hand-worked sums."""

import json

import numpy as np
import pytest
import safetensors.numpy

from gptfl_jax.errors import UserError
from gptfl_jax.released import hub, lora

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "mid_block.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"
MODULES = {"unet": [QUERY, OUT, CONV], "text_encoder": [TEXT]}

DOWN = np.float32([[1, 2, 3]])  # rank 1, of 3 features
UP = np.float32([[10], [20]])  # to 2
SUM = np.float32([[10, 20, 30], [20, 40, 60]])


def save(path, weights, metadata=None):
    path.write_bytes(safetensors.numpy.save(weights, metadata))
    return path


def updated(file, network="unet", layer=QUERY, scale=1.0, weight=None):
    weight = np.zeros((2, 3), np.float32) if weight is None else weight
    updates = lora.read(file, MODULES)[network]
    name = f"{layer}.weight"
    return lora.merged({name: weight}, updates, scale)[name]


@pytest.mark.parametrize(
    "network, layer, down, up",
    [
        ("unet", QUERY, f"unet.{QUERY}.lora_A.weight", f"unet.{QUERY}.lora_B.weight"),
        (
            *("unet", QUERY),
            f"unet.{QUERY}.lora_A.default.weight",
            f"unet.{QUERY}.lora_B.default.weight",
        ),
        (
            *("unet", QUERY),
            f"unet.{QUERY}.lora.down.weight",
            f"unet.{QUERY}.lora.up.weight",
        ),
        (
            *("unet", QUERY),
            f"unet.{QUERY[:-5]}.processor.to_q_lora.down.weight",
            f"unet.{QUERY[:-5]}.processor.to_q_lora.up.weight",
        ),
        (
            *("unet", OUT),
            f"{OUT[:-9]}.processor.to_out_lora.down.weight",
            f"{OUT[:-9]}.processor.to_out_lora.up.weight",
        ),
        (
            *("unet", OUT),
            f"lora_unet_{OUT.replace('.', '_')}.lora_down.weight",
            f"lora_unet_{OUT.replace('.', '_')}.lora_up.weight",
        ),
        (
            *("text_encoder", TEXT),
            f"text_encoder.text_model.{TEXT}.lora_linear_layer.down.weight",
            f"text_encoder.text_model.{TEXT}.lora_linear_layer.up.weight",
        ),
        (
            *("text_encoder", TEXT),
            f"text_encoder.text_model.{TEXT[:-7]}.to_q_lora.down.weight",
            f"text_encoder.text_model.{TEXT[:-7]}.to_q_lora.up.weight",
        ),
        (
            *("text_encoder", TEXT),
            f"text_encoder.{TEXT}.lora_A.weight",
            f"text_encoder.{TEXT}.lora_B.weight",
        ),
        (
            *("text_encoder", TEXT),
            f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_down.weight",
            f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_up.weight",
        ),
    ],
)
def test_every_form_of_names(network, layer, down, up, tmp_path):
    file = save(tmp_path / "a.safetensors", {down: DOWN, up: UP})
    np.testing.assert_array_equal(updated(file, network, layer), SUM)
    others = {n: u for n, u in lora.read(file, MODULES).items() if n != network}
    assert not any(others.values())


def named(layer=QUERY, down=DOWN, up=UP, **others):
    flat = "lora_unet_" + layer.replace(".", "_")
    weights = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
    return weights | {f"{flat}.{name}": value for name, value in others.items()}


def test_scale_alpha_and_rank(tmp_path):
    """W + scale * alpha / rank * up @ down; without alpha, it is the rank."""
    down = np.float32([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    up = np.float32([[4, 8, 0, 0], [0, 0, 12, 0]])
    weight = np.float32([[1, 1, 1], [2, 2, 2]])
    product = np.float32([[4, 8, 0], [0, 0, 12]])
    plain = save(tmp_path / "plain.safetensors", named(down=down, up=up))
    np.testing.assert_array_equal(
        updated(plain, scale=0.5, weight=weight), weight + 0.5 * product
    )
    alpha = np.array(2, np.float32)
    file = save(tmp_path / "a.safetensors", named(down=down, up=up, alpha=alpha))
    np.testing.assert_array_equal(
        updated(file, weight=weight), weight + 2 / 4 * product
    )
    np.testing.assert_array_equal(updated(file, scale=0.0, weight=weight), weight)


def test_settings_in_the_header(tmp_path):
    """As peft writes them: alpha for all, for some, and its root of the rank."""
    weights = {
        f"unet.{layer}.lora_{part}.weight": value
        for layer in (QUERY, OUT)
        for part, value in (
            ("A", np.repeat(DOWN, 4, axis=0)),
            ("B", np.repeat(UP, 4, axis=1)),
        )
    }

    def file(**settings):
        text = json.dumps({f"unet.{name}": v for name, v in settings.items()})
        metadata = {"format": "pt", "lora_adapter_metadata": text}
        return save(tmp_path / "a.safetensors", weights, metadata)

    # Of rank 4, the product is four times that of one.
    np.testing.assert_array_equal(updated(file(r=4, lora_alpha=2)), 2 * SUM)
    rooted = file(r=4, lora_alpha=2, use_rslora=True)
    np.testing.assert_array_equal(updated(rooted), 4 * SUM)
    some = file(r=4, lora_alpha=4, alpha_pattern={"attn1.to_q": 1})
    np.testing.assert_array_equal(updated(some), SUM)
    np.testing.assert_array_equal(updated(some, layer=OUT), 4 * SUM)
    with pytest.raises(UserError, match="use_dora = True: only LoRA itself"):
        updated(file(use_dora=True))
    with pytest.raises(UserError, match=r"alpha_pattern has '\(a\+\)\+'"):
        updated(file(alpha_pattern={"(a+)+": 1}))
    with pytest.raises(UserError, match="unet.lora_alpha = 'much'"):
        updated(file(lora_alpha="much"))


def test_convolutions(tmp_path):
    """`down` convolves to `rank` channels, `up` mixes them at each position."""
    generator = np.random.default_rng(0)
    down = generator.normal(size=(2, 3, 3, 3)).astype(np.float32)
    up = generator.normal(size=(4, 2, 1, 1)).astype(np.float32)
    weight = np.zeros((4, 3, 3, 3), np.float32)
    file = save(tmp_path / "a.safetensors", named(CONV, down, up))
    found = updated(file, layer=CONV, weight=weight)
    expected = np.einsum("or,rihw->oihw", up[..., 0, 0], down)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_matrix_and_a_1x1_convolution_are_the_same(tmp_path):
    for axes, weight in ((2, np.zeros((2, 3))), (0, np.zeros((2, 3, 1, 1)))):
        shape = (1,) * axes
        file = save(
            tmp_path / "a.safetensors",
            named(down=DOWN.reshape(1, 3, *shape), up=UP.reshape(2, 1, *shape)),
        )
        found = updated(file, weight=weight.astype(np.float32))
        np.testing.assert_array_equal(found, SUM.reshape(weight.shape))


def test_the_sum_is_formed_in_float32(tmp_path):
    """Half-precision weights of both files lose nothing by it."""
    file = save(
        tmp_path / "a.safetensors",
        named(down=DOWN.astype(np.float16), up=UP.astype(np.float16)),
    )
    weight = np.full((2, 3), 2048, np.float16)
    found = updated(file, scale=0.01, weight=weight)
    np.testing.assert_allclose(found, 2048 + 0.01 * SUM, rtol=1e-7)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "weights, message",
    [
        (named("mid_block.resnets.1.conv1"), "lora_unet_mid_block_resnets_1_conv1"),
        (named("input_blocks.1.1.proj_in"), "lora_unet_input_blocks_1_1_proj_in"),
        (named(dora_scale=UP), f"lora_unet_{QUERY.replace('.', '_')}.dora_scale: no"),
        ({f"text_encoder_2.{TEXT}.lora_A.weight": DOWN}, "text_encoder_2"),
        (
            {f"unet.{QUERY}.lora_A.weight": DOWN},
            f"one of two .* unet.{QUERY}",
        ),
        ({}, "holds no LoRA"),
        (
            named() | {f"unet.{QUERY}.lora_A.weight": DOWN},
            "twice, under another name",
        ),
    ],
)
def test_what_is_no_update_of_the_model_is_refused(weights, message, tmp_path):
    file = save(tmp_path / "a.safetensors", weights)
    with pytest.raises(UserError, match=message) as error:
        lora.read(file, MODULES)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "down, up",
    [
        (DOWN[:, :2], UP),
        (DOWN, UP[:1]),
        (DOWN, np.repeat(UP, 2, axis=1)),
        (DOWN[0], UP),
        (DOWN[:0], UP[:, :0]),
    ],
)
def test_updates_of_other_shapes_are_refused(down, up, tmp_path):
    file = save(tmp_path / "a.safetensors", named(down=down, up=up))
    with pytest.raises(UserError, match=f"does not fit {QUERY}.weight"):
        updated(file)


def test_an_alpha_that_is_no_number_is_refused(tmp_path):
    file = save(tmp_path / "a.safetensors", named(alpha=np.float32([1, 2])))
    with pytest.raises(UserError, match="alpha is no number"):
        updated(file)


def test_files_folders_and_what_is_neither(tmp_path):
    folder = tmp_path / "a lora"
    folder.mkdir()
    with pytest.raises(UserError, match=r"holds no pytorch_lora_weights.safetensors"):
        lora.find(folder)
    file = save(folder / lora.FILE, named())
    assert lora.find(folder) == lora.find(file) == file
    assert lora.digest(folder) == lora.digest(file)
    assert lora.licence_of(folder) == "unknown"
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n")
    assert lora.licence_of(folder) == lora.licence_of(file) == "openrail++"
    pickled = tmp_path / "lora.bin"
    pickled.write_bytes(b"")
    with pytest.raises(UserError, match="from .safetensors files alone"):
        lora.find(pickled)
    file.write_bytes(b"damaged")
    with pytest.raises(hub.BadWeights, match="damaged"):
        lora.read(file, MODULES)
