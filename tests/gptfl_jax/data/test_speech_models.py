"""What is known of a speech network without PyTorch; tests/parity has the rest."""

import json
import sys

import numpy as np
import pytest

from gptfl_jax.data import audio, outline, speech_models
from gptfl_jax.data.audio import FeatureSettings
from gptfl_jax.errors import UserError

from .conftest import write

CONFIG = {
    "model_type": "wav2vec2",
    "hidden_size": 12,
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
}


@pytest.fixture
def network(tmp_path):
    """A folder with a network's description, of the same test another each time."""

    def save(**changes):
        folder = tmp_path / f"network{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        heard = {"sampling_rate": changes.pop("sampling_rate", 8000)}
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        (folder / "preprocessor_config.json").write_text(json.dumps(heard))
        return str(folder)

    return save


def test_frames_and_windows_of_the_convolutions(network):
    # Windows: 10, + 2 * 5 = 20, + 1 * 10 = 30 samples.
    shape = speech_models.shape(network())
    assert shape == speech_models.Shape(8000, hop=20, window=30, num_features=12)
    # wav2vec 2.0, arXiv 2006.11477: 25 ms every 20 ms.
    released = {"conv_stride": [5, *6 * [2]], "conv_kernel": [10, *4 * [3], 2, 2]}
    shape = speech_models.shape(network(**released, sampling_rate=16_000))
    assert (shape.hop, shape.window) == (320, 400)


def test_settings_are_those_of_the_network(network, tmp_path):
    kind = network()
    settings = audio.resolved(FeatureSettings(kind=kind, max_duration_s=3.0))
    assert (settings.sample_rate_hz, settings.hop, settings.num_bands) == (8000, 20, 12)
    assert settings.max_duration_s == 3 and audio.resolved(settings) == settings
    assert audio.resolved(FeatureSettings(hop=7)) == FeatureSettings(hop=7)
    # Of a data set that is not there: 1 + 40,000 / 20 frames.
    source, _ = outline.load("crema_d", str(tmp_path), features={"kind": kind})
    assert source.train.inputs[0].shape == (3_930, 2_001, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "whisper"}, "model_type is 'whisper': .* of hubert, wav2vec2"),
        ({"conv_stride": []}, r"config.json: conv_stride is missing or damaged"),
        ({"conv_stride": [5, 2]}, "conv_stride and conv_kernel do not fit"),
        ({"conv_stride": [5, 2, 99_999]}, "conv_stride is missing or damaged"),
        ({"conv_stride": [999, 999, 1]}, "conv_stride and conv_kernel do not fit"),
        ({"hidden_size": True}, "hidden_size is missing or damaged"),
        (
            {"sampling_rate": "16k"},
            "preprocessor_config.json: sampling_rate is ",
        ),
        (
            {"auto_map": {"AutoModel": "own.Model"}},
            "is never run: name a model",
        ),
    ],
)
def test_damaged_descriptions_are_named(network, changes, message):
    with pytest.raises(UserError, match=message):
        audio.resolved(FeatureSettings(kind=network(**changes)))


def test_what_is_missing_is_named(network, tmp_path, monkeypatch):
    write(tmp_path / "clip.wav", 0)
    clips = [audio.Clip(tmp_path / "clip.wav")]
    with pytest.raises(UserError, match="one of log_mel, mfcc, or a network of speech"):
        audio.extract(clips, FeatureSettings(kind="mel"))
    with pytest.raises(UserError, match="no/such/folder: there is no such folder"):
        audio.extract(clips, FeatureSettings(kind="no/such/folder"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"pip install 'gptfl-jax\[features\]'"):
        speech_models.compute(np.zeros(40, np.float32), network())
