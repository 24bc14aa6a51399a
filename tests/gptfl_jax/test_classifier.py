"""A classifier of a finished run: read back, used on arrays and files, exported."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import gptfl_jax as gf
from federated import simulate
from gptfl_jax import artifacts, choices, configuration, drawing, families, training
from gptfl_jax.classifier import Classifier
from gptfl_jax.data import audio
from gptfl_jax.description import Description, describe, make_learner
from gptfl_jax.errors import UserError


@pytest.fixture(scope="module")
def digits():
    return gf.load("sklearn_digits")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one round, by the program."""
    config = configuration.default_config("data", "model", "federated")
    config.model.options = {"width": 8, "depth": 2}
    config.federated.partition = "iid"
    config.federated.num_clients = 4
    config.federated.cohort_size = 2
    config.federated.rounds = 1
    workdir = tmp_path_factory.mktemp("run")
    last = simulate.simulate(config, workdir, quiet=True)
    return workdir / "federated" / "fedavg-random-s0", last


def test_a_run_of_the_program_is_read_back(finished, digits):
    folder, last = finished
    classifier = gf.load_classifier(folder)
    measured = classifier.evaluate(digits.test.inputs, digits.test.labels)
    assert measured.accuracy == pytest.approx(last["accuracy"], abs=1e-12)
    assert measured.loss == pytest.approx(last["loss"], rel=1e-5)
    assert classifier.class_names == tuple("0123456789")

    probabilities = classifier.probabilities(digits.test.inputs, batch_size=100)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    guesses = classifier.predict(digits.test.inputs)
    np.testing.assert_array_equal(guesses, probabilities.argmax(1))
    assert (guesses == digits.test.labels).mean() == pytest.approx(measured.accuracy)
    # By parts as at once, the last part being shorter.
    np.testing.assert_allclose(
        classifier.probabilities(digits.test.inputs), probabilities, atol=1e-6
    )
    assert classifier.probabilities(digits.test.inputs[:0]).shape == (0, 10)


def test_pictures_are_read_as_the_model_takes_them(finished, digits, tmp_path):
    classifier = gf.load_classifier(finished[0])
    pixels = digits.test.inputs[0]
    path = tmp_path / "digit.png"
    path.write_bytes(drawing.encode_png(PIL.Image.fromarray(pixels[..., 0])))
    np.testing.assert_array_equal(classifier.read([path])[0], pixels)
    np.testing.assert_array_equal(
        classifier.predict(str(path)), classifier.predict(digits.test.inputs[:1])
    )
    # Colour, larger, and not square: grey, small, and the middle of it.
    image = PIL.Image.fromarray(np.repeat(np.repeat(pixels, 4, 0), 4, 1)[..., 0])
    wide = PIL.Image.new("RGB", (64, 32))
    wide.paste(image.convert("RGB"), (16, 0))
    wide.save(tmp_path / "wide.png")
    np.testing.assert_array_equal(classifier.read(tmp_path / "wide.png")[0], pixels)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken.png: cannot be decoded"):
        classifier.predict(tmp_path / "broken.png")


def test_the_exported_file_computes_the_same(finished, digits, tmp_path):
    classifier = gf.load_classifier(finished[0])
    path = tmp_path / "digits.export"
    classifier.export(path)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    for count in (1, 7):
        inputs = digits.test.inputs[:count]
        np.testing.assert_allclose(
            exported.call(inputs), classifier.probabilities(inputs), atol=1e-5
        )


def untrained(example, name="", options=None, model=None):
    """A classifier of two classes whose weights are all 0."""
    about = Description(name, options or {}, ("low", "high"), example)
    learner = training.make_learner(model, example) if model else make_learner(about)
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return Classifier(learner, zeros, about)


@pytest.mark.long
@pytest.mark.parametrize("name", choices.available(families.MODEL))
def test_every_model_is_exported_for_any_number_of_examples(name):
    example = jax.ShapeDtypeStruct((32, 32, 3), np.uint8)
    if name in ("audio_cnn", "audio_conv_rnn", "bc_resnet"):
        features = jax.ShapeDtypeStruct((20, 80), np.float32)
        example = (features, jax.ShapeDtypeStruct((), np.int32))
    options = {"patch": 8, "depth": 1} if name == "vit" else {}
    content = untrained(example, name, options).exported(("cpu",))
    (output,) = jax.export.deserialize(bytearray(content)).out_avals
    assert str(output.shape) == "(batch, 2)"


def test_a_model_for_a_fixed_number_of_examples_is_not_exported(tmp_path):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(2)(inputs.reshape(len(inputs), -1))

    classifier = untrained(jax.ShapeDtypeStruct((4, 4, 1), np.uint8), model=Own())
    message = r"^the model: .*: write inputs.shape\[0\] in place of len\(inputs\)$"
    with pytest.raises(UserError, match=message):
        classifier.export(tmp_path / "own.export")
    assert not (tmp_path / "own.export").exists()


def test_sounds_are_read_as_the_model_takes_them(tmp_path):
    settings = audio.FeatureSettings(
        sample_rate_hz=8000, num_mels=16, fft_size=256, hop=80
    )
    example = (
        jax.ShapeDtypeStruct((100, 16), np.float32),
        jax.ShapeDtypeStruct((), np.int32),
    )
    description = Description(
        "audio_cnn", {}, ("low", "high"), example, (), (), settings
    )
    learner = make_learner(description)
    variables = learner.init(jax.random.key(0))
    classifier = Classifier(learner, variables, description)
    wave = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440).astype(np.float32)
    path = tmp_path / "a.wav"
    path.write_bytes(audio.encode_wav(wave, 8000))
    features, lengths = classifier.read(path)
    expected = audio.extract([audio.Clip(path)], settings)
    np.testing.assert_array_equal(features, expected[0])
    assert features.shape == (1, lengths[0], 16)
    assert classifier.probabilities([path, path]).shape == (2, 2)


def test_what_a_description_keeps(tmp_path, digits):
    describe("convnet", {"width": 8}, digits).save(tmp_path)
    content = json.loads((tmp_path / "classifier.json").read_text())
    assert content["model"] == {"name": "convnet", "options": {"width": 8}}
    assert content["inputs"] == [{"shape": [8, 8, 1], "dtype": "uint8"}]
    assert content["sounds"] == {}


def test_code_that_a_folder_names_is_not_run(finished, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(finished[0] / "checkpoints")
    content = json.loads((finished[0] / "classifier.json").read_text())
    own = tmp_path / "own.py"
    own.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    content["model"]["name"] = str(own)
    artifacts.write_json(folder / "classifier.json", content)
    with pytest.raises(UserError, match=f"code of your own.* model='{own}', "):
        gf.load_classifier(folder)
    assert not (tmp_path / "ran").exists()
    assert gf.load_classifier(folder, model="convnet").class_names


@pytest.mark.parametrize(
    "content", ['{"model": {}}', "[]", "{", '{"model": {"name": "a"}, "sounds": {}}']
)
def test_a_damaged_description_is_named(finished, tmp_path, content):
    (tmp_path / "checkpoints").symlink_to(finished[0] / "checkpoints")
    (tmp_path / "classifier.json").write_text(content)
    with pytest.raises(UserError, match="classifier.json: .*start the run again"):
        gf.load_classifier(tmp_path)


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(UserError, match="checkpoints"):
        gf.load_classifier(tmp_path)
