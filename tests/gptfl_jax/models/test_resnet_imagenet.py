import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import resnet_imagenet
from gptfl_jax.released import torch_weights


def shapes(shape, num_classes=1000, **options):
    model = models.create("resnet_imagenet", num_classes, **options)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # As torchvision counts them.
        ({"depth": 18}, 11_689_512),
        ({"depth": 34}, 21_797_672),
        ({"depth": 50}, 25_557_032),
        ({"depth": 101}, 44_549_160),
        ({"depth": 152}, 60_192_808),
        ({"depth": 18, "norm": "group"}, 11_689_512),
        # 4,800 scales and as many biases; a stem of 9 in place of 49 pixels.
        ({"depth": 18, "norm": "none"}, 11_689_512 - 2 * 4_800),
        ({"depth": 18, "stem": "cifar"}, 11_689_512 - 40 * 3 * 64),
    ],
)
def test_number_of_parameters(options, expected):
    variables = shapes((224, 224, 3), **options)
    assert training.number_of_parameters(variables) == expected
    batch_norm = options.get("norm", "batch") == "batch"
    assert ("batch_stats" in variables) == batch_norm


def test_weights_begin_as_those_of_torch():
    model = models.create("resnet_imagenet", 50, width=32)

    @jax.jit
    def some(key):  # the compiler leaves out what is not asked for
        params = model.init(key, jnp.zeros((1, 32, 32, 3)))["params"]
        return (
            params["layer4_1"]["conv2"]["kernel"],
            params["classifier"],
            params["bn1"],
        )

    kernel, head, norm = some(jax.random.key(0))
    assert kernel.shape == (3, 3, 256, 256)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    bound = 256**-0.5
    for leaf in (head["kernel"], head["bias"]):
        assert bound * 0.9 < float(jnp.abs(leaf).max()) <= bound
    assert (norm["scale"] == 1).all() and not norm["bias"].any()


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 50, "stem": "cifar"},
        {"depth": 18, "norm": "group"},
        {"depth": 18, "norm": "none"},
    ],
)
def test_a_file_says_which_model_it_is_of(tmp_path, options):
    model = models.create("resnet_imagenet", 5, width=4, **options)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree
    )
    weights = torch_weights.variables_to_torch(variables)
    weights = {
        name.replace("classifier.", "fc."): value for name, value in weights.items()
    }
    if "norm" not in options:
        assert {"bn1.running_var", "layer1.0.downsample.1.weight"} <= set(weights)
        weights["bn1.num_batches_tracked"] = np.array(3)
    save_file(weights, tmp_path / "x.safetensors")
    found, read = resnet_imagenet.read_weights(tmp_path / "x.safetensors")
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_a_file_for_other_classes_gives_all_but_the_head(tmp_path):
    def variables(num_classes, seed, **options):
        rng = np.random.default_rng(seed)
        tree = shapes((32, 32, 3), num_classes, width=4, **options)
        return jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree
        )

    released = variables(9, 0)
    weights = {
        name.replace("classifier.", "fc."): value
        for name, value in torch_weights.variables_to_torch(released).items()
    }
    file = tmp_path / "x.safetensors"
    save_file(weights, file)
    for classes in (9, 5):
        own = variables(classes, 1)
        head = own["params"]["classifier"]
        found, whole = models.load_weights("resnet_imagenet", own, file)
        assert whole == (classes == 9)
        expected = (
            released
            if whole
            else {**released, "params": {**released["params"], "classifier": head}}
        )
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert own["params"]["classifier"] is head
    with pytest.raises(UserError, match=r"conv1.weight has shape \(4, 3, 7, 7\)"):
        models.load_weights("resnet_imagenet", variables(9, 1, stem="cifar"), file)
    with pytest.raises(UserError, match=r"has no weights layer1\.2\.bn1\.bias"):
        models.load_weights("resnet_imagenet", variables(9, 1, depth=34), file)


def test_files_of_other_models_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"features.0.weight": np.zeros((4, 3, 3, 3), np.float32)}, file)
    with pytest.raises(UserError, match="x.safetensors: not a ResNet by torchvision's"):
        resnet_imagenet.read_weights(file)
