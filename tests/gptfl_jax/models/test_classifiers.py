import functools
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax import choices, families, models, training
from gptfl_jax.errors import UserError
from gptfl_jax.released import weight_files


def shapes(name, shape, num_classes=10, **options):
    model = models.create(name, num_classes, **options)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))


# Parameters worked out by hand: weights + biases + scales and biases of norms.
CONVNET = (
    (9 * 3 * 128 + 128 + 256) + 2 * (9 * 128 * 128 + 128 + 256) + 16 * 128 * 10 + 10
)
RESNET20 = (
    (9 * 3 * 16 + 32)
    + 6 * (9 * 16 * 16 + 32)
    + (9 * 16 * 32 + 64)
    + 5 * (9 * 32 * 32 + 64)
    + (9 * 32 * 64 + 128)
    + 5 * (9 * 64 * 64 + 128)
    + 64 * 10
    + 10
)


@pytest.mark.parametrize(
    ("name", "shape", "options", "expected"),
    [
        ("convnet", (32, 32, 3), {}, CONVNET),
        ("convnet", (32, 32, 3), {"norm": "group"}, CONVNET),
        ("convnet", (32, 32, 3), {"norm": "none"}, CONVNET - 3 * 256),
        ("convnet", (32, 32, 3), {"norm": "batch"}, CONVNET),
        (
            *("convnet", (32, 32, 3), {"norm": "layer"}),
            CONVNET + 2 * 128 * (32**2 + 16**2 + 8**2 - 3),
        ),
        ("convnet", (8, 8, 1), {"width": 4, "depth": 1}, 40 + 8 + 16 * 4 * 10 + 10),
        ("cnn", (28, 28, 1), {}, 1_663_370),  # as the paper says
        ("mlp", (28, 28, 1), {}, 199_210),  # as the paper says
        ("mlp", (5,), {"hidden": (7,)}, 5 * 7 + 7 + 70 + 10),
        ("logistic_regression", (28, 28, 1), {}, 7_850),
        # The same layers, of 32 pixels or 28 with 2 around; RGB has twice 25 x 6 more.
        ("lenet", (28, 28, 1), {}, 61_706),
        ("lenet", (32, 32, 3), {"padding": 0}, 61_706 + 2 * 25 * 6),
        ("resnet", (32, 32, 3), {}, RESNET20),
        ("resnet", (32, 32, 3), {"norm": "group"}, RESNET20),
        ("resnet", (32, 32, 3), {"norm": "instance"}, RESNET20),
        (
            "resnet",
            (32, 32, 3),
            {"norm": "none"},
            RESNET20 - 7 * 32 - 6 * 64 - 6 * 128,
        ),
        ("resnet", (32, 32, 3), {"track_running_stats": False}, RESNET20),
        ("resnet", (32, 32, 3), {"depth": 56}, 853_018),  # "0.85M" in the paper
    ],
)
def test_number_of_parameters(name, shape, options, expected):
    variables = shapes(name, shape, **options)
    assert training.number_of_parameters(variables) == expected
    state = set(variables) - {"params"}
    default = "batch" if name == "resnet" else ""
    batch_norm = options.get("norm", default) == "batch"
    batch_norm &= options.get("track_running_stats", True)
    assert state == ({"batch_stats"} if batch_norm else set())


def test_the_page_names_every_model(repository):
    page = (repository / "docs/models.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert sorted(named) == list(choices.available(families.MODEL))


# Of every family a small member, and layers by the names of the files that it has.
FILES = {
    "audio_cnn": ({"widths": (4, 6)}, (9, 8), ()),
    "audio_conv_rnn": ({"widths": (4, 6), "features": 3}, (9, 8), ("pred_layer.2",)),
    "bc_resnet": ({"sub_bands": 1}, (9, 40), ("classifier", "stage0_block1.mix")),
    "cnn": ({"hidden": 4}, (8, 8, 1), ("classifier",)),
    "convnet": ({"width": 4, "depth": 2}, (8, 8, 3), ("features.4", "features.5")),
    "lenet": ({}, (28, 28, 1), ("fc3",)),
    "logistic_regression": ({}, (5,), ("classifier",)),
    "mlp": ({"hidden": (3,)}, (5,), ("classifier",)),
    "mobilenet_v2": ({"width": 0.1}, (32, 32, 3), ("classifier.1", "features.18.0")),
    "resnet": ({"depth": 8, "width": 8}, (8, 8, 3), ("bn1", "layer3.0.bn2", "linear")),
    "resnet_imagenet": ({"width": 2}, (32, 32, 3), ("fc", "layer4.1.conv2")),
    "shufflenet": ({}, (8, 8, 3), ("classification_layer", "layer3.3.conv3")),
    "shufflenet_v2": ({"width": 0.5}, (32, 32, 3), ("fc", "stage2.0.branch1.2")),
    "vgg": (
        {"depth": 11, "width": 2, "hidden": 3, "norm": "batch"},
        (32, 32, 3),
        ("classifier.6", "features.1"),
    ),
    "vit": (
        {"depth": 2, "patch": 8},
        (16, 16, 1),
        ("heads.head", "encoder.layers.encoder_layer_1.self_attention.out_proj"),
    ),
}


@pytest.mark.parametrize("name", choices.available(families.MODEL))
def test_files_of_released_weights_are_written_and_read(name, tmp_path):
    options, shape, layers = FILES[name]
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        shapes(name, shape, **options),
    )
    weights = models.released_weights(name, variables)
    assert {f"{layer}.weight" for layer in layers} <= set(weights)
    save_file(weights, tmp_path / "x.safetensors")
    zeros = jax.tree.map(np.zeros_like, variables)
    read, whole = models.load_weights(name, zeros, tmp_path / "x.safetensors")
    assert whole
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _tiles(x):
    return x.reshape(2, 2, 2, 2, 2).swapaxes(2, 3).reshape(2, 4, 4)


# Options, axes of the norm, what follows it, and what is left of 2 x 2 pixels.
CONVNETS = [
    ({}, (1, 2), lambda x: np.maximum(x, 0), lambda x: _tiles(x).mean(2)),
    (
        {"norm": "layer", "activation": "sigmoid", "pool": "max"},
        *((1, 2), _sigmoid, lambda x: _tiles(x).max(2)),
    ),
    (
        {"norm": "batch", "activation": "leaky_relu", "pool": "none"},
        *((0, 1, 2), lambda x: np.where(x > 0, x, x / 100), lambda x: x),
    ),
    (
        {"norm": "group", "activation": "swish"},
        *((1, 2), lambda x: x * _sigmoid(x), lambda x: _tiles(x).mean(2)),
    ),
]


@pytest.mark.parametrize(("options", "axes", "activation", "pool"), CONVNETS)
def test_convnet_by_hand(options, axes, activation, pool):
    # Width 1, one block: the kernel sums its window; norm and pool follow by hand.
    model = models.create("convnet", 1, width=1, depth=1, **options)
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
    shape = (4, 4, 1) if options.get("norm") == "layer" else (1,)
    left = 16 if options.get("pool") == "none" else 4
    params = {
        "conv0": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.full(1, 5.0)},
        "norm0": {"scale": jnp.full(shape, 2.0), "bias": jnp.full(shape, 0.5)},
        "classifier": {"kernel": jnp.ones((left, 1)), "bias": jnp.ones(1)},
    }
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(around[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3))[..., 0]
    mean, var = y.mean(axes, keepdims=True), y.var(axes, keepdims=True)
    y = activation((y - mean) / np.sqrt(var + 1e-5) * 2 + 0.5)
    expected = pool(y).reshape(2, left).sum(1) + 1
    state = {"norm0": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}
    given = {"params": params, "batch_stats": state}
    logits, _ = model.apply(given, jnp.asarray(x), True, mutable=["batch_stats"])
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_convnet_makes_32_pixels_of_28_as_the_original():
    params = shapes("convnet", (28, 28, 1), padding=3, depth=5)["params"]
    assert params["classifier"]["kernel"].shape == (128, 10)


def test_odd_rows_are_dropped_by_the_pools():
    params = shapes("convnet", (15, 13, 3), width=8, depth=2)["params"]
    assert params["classifier"]["kernel"].shape == (3 * 3 * 8, 10)


def test_resnet_shortcut_pads_channels_on_both_sides():
    from gptfl_jax.models.resnet import BasicBlock, NamedNorm

    norm = functools.partial(NamedNorm, "group", 1, True)
    block = BasicBlock(features=4, stride=2, norm=norm)
    x = jax.random.uniform(jax.random.key(0), (1, 4, 4, 2))
    variables = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False, None))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
    y = block.apply(zero, x, False, None)
    np.testing.assert_array_equal(y[..., 1:3], x[:, ::2, ::2])
    assert not y[..., [0, 3]].any()


def test_unknown_models_and_options_are_refused():
    with pytest.raises(
        UserError, match="takes one of audio_cnn, audio_conv_rnn, bc_resnet"
    ):
        models.create("vgg0", 10)
    with pytest.raises(UserError, match="like gptfl_jax.models.* it holds none"):
        models.create("os.path", 10)
    taken = "options.layers: convnet takes no such option; it takes width"
    with pytest.raises(UserError, match=taken):
        models.create("convnet", 10, layers=3)
    with pytest.raises(UserError, match="options.norm = 'weight': takes"):
        models.create("convnet", 10, norm="weight")
    with pytest.raises(UserError, match="options.norm = 'layer': takes"):
        models.create("resnet", 10, norm="layer")
    with pytest.raises(UserError, match="depth = 18"):
        shapes("resnet", (8, 8, 1), depth=18)
    with pytest.raises(UserError, match="depth = 4: pictures of 8x8"):
        shapes("convnet", (8, 8, 1), depth=4)
    with pytest.raises(UserError, match="padding = 0: pictures are to be 16 pixels"):
        shapes("lenet", (15, 28, 1), padding=0)
    with pytest.raises(UserError, match="from 4x4 pixels"):
        shapes("cnn", (3, 8, 1))


def test_files_for_imagenet_are_of_their_models(monkeypatch):
    monkeypatch.setattr(weight_files, "download", pathlib.Path)

    def file(name, **options):
        return models.find_weights("imagenet", name, **options).name

    assert file("resnet_imagenet", depth=50) == "resnet50-0676ba61.pth"
    assert file("vgg", depth=19) == "vgg19-dcbb9e9d.pth"
    assert file("vgg", depth=16, norm="batch") == "vgg16_bn-6c64b313.pth"
    assert file("mobilenet_v2") == "mobilenet_v2-b0353104.pth"
    with pytest.raises(UserError, match="none for resnet_im.* for depth=18, stem=imag"):
        file("resnet_imagenet", norm="group")
    with pytest.raises(UserError, match="none for mlp .* for other models"):
        file("mlp")
    assert file("vit", size="base") == "vit_b_16-c867db91.pth"
    assert file("shufflenet_v2", width=2) == "shufflenetv2_x2_0-8be3c8ee.pth"
    for name in ("resnet_imagenet", "vgg", "mobilenet_v2", "shufflenet_v2", "vit"):
        module = importlib.import_module(f"gptfl_jax.models.{name}")
        for address, options in module.IMAGENET.items():
            hosts = ("download.pytorch.org/models/", "dl.fbaipublicfiles.com/deit/")
            assert address.startswith(tuple(f"https://{host}" for host in hosts))
            assert file(name, **options) == pathlib.PurePath(address).name
