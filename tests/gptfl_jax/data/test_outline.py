import numpy as np
import pytest

from gptfl_jax import devices
from gptfl_jax.data import outline, sources
from gptfl_jax.errors import ConfigError, UserError


def test_data_that_are_there_are_read():
    source, lacking = outline.load("sklearn_digits")
    assert not lacking
    read = sources.load("sklearn_digits")
    np.testing.assert_array_equal(source.test.inputs, read.test.inputs)


def test_pictures_that_are_not_there_have_the_released_sizes(tmp_path):
    source, lacking = outline.load("cifar100", str(tmp_path))
    assert "cifar-100-python" in lacking
    assert source.train.inputs.shape == (50_000, 32, 32, 3)
    assert source.test.labels.shape == (10_000,) and source.train.num_classes == 100
    assert source.train.inputs.strides == (0, 0, 0, 0)  # no memory
    folder = {"labels": "food101", "test_list": "test.txt"}
    source, _ = outline.load(
        "image_folder", str(tmp_path / "none"), image_size=224, channels=1, **folder
    )
    assert source.train.inputs.shape == (75_750, 224, 224, 1)
    # They would be decoded into files.
    assert devices.in_files(source.train.inputs)


def test_sounds_that_are_not_there_have_the_frames_of_the_longest(tmp_path):
    options = {"features": {"num_mels": 64}, "download": True}
    source, _ = outline.load("speech_commands", str(tmp_path), **options)
    features, lengths = source.train.inputs
    assert features.shape == (84_843, 101, 64) and set(lengths) == {101}
    assert len(set(source.train.clients)) == 2_112
    assert source.train.class_names[-1] == "silence" and source.mean == ()


def test_writers_and_segments_count(tmp_path):
    source, _ = outline.load("femnist", str(tmp_path))
    assert source.train.inputs.shape == (671_585, 28, 28, 1)
    assert source.train.num_classes == 62
    source, _ = outline.load("femnist", str(tmp_path), writers=340)
    assert len(set(source.train.clients)) == 340
    assert (len(source.train.labels), len(source.test.labels)) == (67_158, 7_748)
    source, _ = outline.load("urbansound8k", str(tmp_path), segment_s=3.0)
    assert source.train.inputs[0].shape == (2 * 7_940, 301, 128)
    assert source.test.inputs[0].shape == (792, 2, 301, 128)
    assert source.test.inputs[1].shape == (792, 2) and len(source.test.labels) == 792


def test_classes_that_an_option_chooses(tmp_path):
    source, _ = outline.load("meld", str(tmp_path), task="emotion")
    assert source.train.num_classes == 7 and len(set(source.train.clients)) == 86
    source, _ = outline.load("crema_d", str(tmp_path), emotions=("fear", "sad"))
    assert source.train.class_names == ("fear", "sad")
    source, _ = outline.load("iemocap", "")
    assert source.train.class_names == ("neutral", "happy", "sad", "anger")


def test_what_cannot_be_outlined_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        outline.load("image_folder", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="speed"):
        outline.load("cifar10", str(tmp_path), speed=3)
    with pytest.raises(ConfigError, match="several sizes"):
        outline.load("image_folder", str(tmp_path / "none"), labels="food101")
