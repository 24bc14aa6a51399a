"""Folders of exported classifiers: what they hold, and that nothing is lost."""

import json

import chex
import jax
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import gptfl_jax as gf
from gptfl_jax import description, exports, models
from gptfl_jax.classifier import Classifier
from gptfl_jax.data import audio
from gptfl_jax.description import Description
from gptfl_jax.errors import UserError

NAMES = ("cat", "dog", "größe")
PICTURE = jax.ShapeDtypeStruct((32, 32, 3), np.uint8)
SOUND = (
    jax.ShapeDtypeStruct((8, 16), np.float32),
    jax.ShapeDtypeStruct((), np.int32),
)
PIXELS = ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))


def classifier(model, **options):
    """One of random numbers, as training has not left them."""
    if model.startswith("audio"):
        settings = audio.FeatureSettings(num_mels=16)
        about = Description(model, options, NAMES, SOUND, (), (), settings)
    else:
        about = Description(model, options, NAMES, PICTURE, *PIXELS)
    learner = description.make_learner(about)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes
    )
    return Classifier(learner, variables, about)


# A name of a weight that torchvision's, or the original's, file has.
@pytest.mark.parametrize(
    ("model", "options", "theirs"),
    [
        ("resnet_imagenet", {"width": 4}, "layer2.0.downsample.1.running_mean"),
        ("vgg", {"depth": 11, "width": 4, "hidden": 8}, "classifier.6.weight"),
        ("mobilenet_v2", {"width": 0.25}, "features.18.1.running_var"),
        ("shufflenet_v2", {"width": 0.5}, "stage2.0.branch1.1.running_mean"),
        ("convnet", {"width": 4}, "features.8.bias"),
        ("resnet", {"depth": 8, "width": 8}, "layer1.0.bn2.running_mean"),
        ("cnn", {}, "dense.weight"),
        ("audio_conv_rnn", {"hidden": 8}, "pred_layer.2.weight"),
        ("audio_cnn", {}, "classifier.bias"),
    ],
)
def test_nothing_is_lost(model, options, theirs, tmp_path):
    made = classifier(model, **options)
    made.save_weights(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert theirs in weights
    again = gf.load_classifier(tmp_path)
    chex.assert_trees_all_equal(again.variables, made.variables)
    assert again.description == made.description._replace(options=options)
    # So does what reads released weights.
    fresh = jax.tree.map(np.zeros_like, made.variables)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found, whole = models.load_weights(model, fresh, path)
        assert whole
        chex.assert_trees_all_equal(found, made.variables)


def test_what_the_config_says(tmp_path):
    classifier("convnet", width=4).save_weights(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("gptfl_jax")["model"]["options"] == {"width": 4}
    assert config == {
        "num_labels": 3,
        "id2label": {"0": "cat", "1": "dog", "2": "größe"},
        "label2id": {"cat": 0, "dog": 1, "größe": 2},
        "image_size": 32,
        "num_channels": 3,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.1, 0.2, 0.3],
    }
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"  # transformers takes no other
    assert metadata["config"] == (tmp_path / "config.json").read_text()
    classifier("audio_cnn").save_weights(tmp_path / "sounds")
    config = json.loads((tmp_path / "sounds" / "config.json").read_text())
    assert "image_size" not in config
    assert config["gptfl_jax"]["sounds"]["num_mels"] == 16


def test_a_model_given_as_an_object_has_no_name(tmp_path):
    made = classifier("convnet", width=4)
    made = made._replace(description=made.description._replace(model=""))
    with pytest.raises(UserError, match="given as an object.*give it by name"):
        made.save_weights(tmp_path)
    assert not list(tmp_path.iterdir())


def test_code_that_a_folder_names_is_not_run(tmp_path):
    classifier("convnet", width=4).save_weights(tmp_path)
    own = tmp_path / "own.py"
    own.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["gptfl_jax"]["model"]["name"] = str(own)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="code of your own. Say so"):
        gf.load_classifier(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert gf.load_classifier(tmp_path, model="convnet").class_names == NAMES


def test_files_that_do_not_belong_together(tmp_path):
    classifier("convnet", width=4).save_weights(tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights, text = load_file(file), config.read_text()
    # Another number of classes: as released weights this is a start, here it is none.
    head = {
        name: np.repeat(value, 2, 0) if name.startswith("classifier") else value
        for name, value in weights.items()
    }
    save_file(head, file)
    with pytest.raises(UserError, match=r"not of the 3 classes of config\.json: exp"):
        gf.load_classifier(tmp_path)
    save_file({"a": np.zeros(3)}, file)
    with pytest.raises(UserError, match=r"model\.safetensors has no weights"):
        gf.load_classifier(tmp_path)
    for content in ("{}", "[", text.replace('"class_names"', '"names"')):
        config.write_text(content)
        with pytest.raises(UserError, match=r"config\.json: .*export the classifier"):
            gf.load_classifier(tmp_path)
    config.unlink()
    with pytest.raises(UserError, match=r"config\.json: missing"):
        exports.read(tmp_path)
