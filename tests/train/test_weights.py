"""Released weights become a folder that a federation starts from."""

import io
import zipfile

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save

import gptfl_jax as gf
from gptfl_jax import description, models
from gptfl_jax.errors import UserError
from gptfl_jax.released import gptfl
from train import weights

NAME = "resnet20_cifar10"


@pytest.fixture
def released(tmp_path, web_server, monkeypatch):
    """The weights that the server's archive has in the place of the authors'."""
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path / "cache"))
    release = gptfl.RELEASES[NAME]
    learner = description.make_learner(weights.describe(release))
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes
    )
    file = release.file.replace(".pth", ".safetensors")  # as our writer writes
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(
            f"weight/{file}", save(models.released_weights(release.model, variables))
        )
    web_server.files["/weight.zip"] = content.getvalue()
    address = f"{web_server.url}/weight.zip"
    monkeypatch.setitem(
        gptfl.RELEASES, NAME, release._replace(address=address, file=file)
    )
    return variables


def test_a_release_is_fetched_and_converted(
    released, web_server, tmp_path, monkeypatch, capsys
):
    web_server.cuts = [100_000]
    monkeypatch.chdir(tmp_path)
    weights.run(NAME)
    assert "--config.model.options.track_running_stats=False" in capsys.readouterr().out
    classifier = gf.load_classifier(tmp_path / "weights" / NAME)
    chex.assert_trees_all_equal(jax.device_get(classifier.variables), released)
    assert classifier.class_names[:2] == ("airplane", "automobile")
    assert classifier.description.mean == (0.485, 0.456, 0.406)
    weights.run(NAME, output=str(tmp_path / "again"))
    assert len(web_server.requests) == 2  # one was cut off
    # The name alone will do, for the model that it is of.
    options = {**gptfl.RELEASES[NAME].options}
    file = models.find_weights(NAME, "resnet", **options)
    fresh = jax.tree.map(np.zeros_like, released)
    found, whole = models.load_weights("resnet", fresh, file)
    assert whole
    chex.assert_trees_all_equal(found, released)


def test_a_file_of_other_classes_is_refused(released, web_server, tmp_path):
    shapes = jax.tree.map(np.zeros_like, released)
    shapes["params"]["classifier"] = {
        "kernel": np.zeros((64, 7), np.float32),
        "bias": np.zeros(7, np.float32),
    }
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(models.released_weights("resnet", shapes)))
    with pytest.raises(UserError, match="is not of the 10 classes of resnet20_cifar10"):
        weights.run(NAME, url=str(path), output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_sounds_come_with_their_features(monkeypatch):
    about = weights.describe(gptfl.RELEASES["audio_conv_rnn_speech_commands"])
    assert len(about.class_names) == 36 and about.class_names[-1] == "silence"
    assert about.sounds.num_mels == 128 and about.options == {"masked": False}
    assert [leaf.shape for leaf in about.example] == [(101, 128), ()]
