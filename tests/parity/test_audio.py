"""The original's sound classifier, and its features, against torch."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from gptfl_jax import description, exports, training
from gptfl_jax.data import audio
from gptfl_jax.description import Description
from gptfl_jax.models import audio_conv_rnn


class ConvRnn(nn.Module):
    """The original's network, with its names of the weights."""

    def __init__(self, bands, widths, features, hidden, classes):
        super().__init__()
        first, second = widths
        self.conv = nn.Sequential(
            *(nn.Conv1d(bands, first, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2)),
        )
        self.rnn = nn.GRU(second, features, batch_first=True, bidirectional=True)
        self.pred_layer = nn.Sequential(
            nn.Linear(2 * features, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x):
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.pred_layer(self.rnn(x)[0].mean(1))


@pytest.fixture(scope="module")
def data_folder():
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    return pathlib.Path(os.environ["GPTFL_DATA_DIR"])


def test_released_weights(data_folder):
    file = data_folder / "gptfl" / "gcommand.pth"
    theirs = ConvRnn(128, (64, 128), 128, 128, 36)
    theirs.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    model, variables = audio_conv_rnn.read_weights(file)
    wave = audio.read(data_folder / "speech_commands" / "00176480_nohash_0_bed.wav")
    rng = np.random.default_rng(0)
    for x in (
        audio.compute(wave, audio.FeatureSettings())[None],
        audio.log_mel(wave, audio.FeatureSettings())[None],
        rng.normal(size=(3, 101, 128)).astype(np.float32),
        10 * rng.normal(size=(1, 37, 128)).astype(np.float32),
    ):
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x)).numpy()
        with jax.default_matmul_precision("highest"):
            logits = model.apply(variables, jnp.asarray(x))
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_exported_weights(tmp_path):
    learner = description.make_learner(
        about := Description(
            "audio_conv_rnn",
            {"widths": (4, 5), "features": 3, "hidden": 7, "masked": False},
            tuple("abcdefgh"),
            jax.ShapeDtypeStruct((30, 6), np.float32),
        )
    )
    variables = learner.init(jax.random.key(0))
    exports.write(tmp_path, about, variables)
    theirs = ConvRnn(6, (4, 5), 3, 7, 8)
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    x = np.random.default_rng(0).normal(size=(4, 30, 6)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(learner.predict(variables, x), expected, atol=1e-4)


def test_gradients():
    torch.manual_seed(0)
    theirs = ConvRnn(6, (4, 5), 3, 7, 8)
    weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
    model, variables = audio_conv_rnn.from_torch(weights)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 30, 6)).astype(np.float32)
    labels = rng.integers(0, 8, 4)

    def loss(variables):
        logits = model.apply(variables, jnp.asarray(x))
        return training.cross_entropy(logits, jnp.asarray(labels)).mean()

    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(loss))(variables)
    nn.functional.cross_entropy(
        theirs(torch.from_numpy(x)), torch.from_numpy(labels)
    ).backward()
    expected = {name: value.grad.numpy() for name, value in theirs.named_parameters()}
    _, expected = audio_conv_rnn.from_torch(expected)
    jax.tree.map(
        lambda ours, them: np.testing.assert_allclose(ours, them, atol=1e-6, rtol=1e-4),
        gradient,
        expected,
    )


def test_spectrogram(data_folder):
    wave = audio.read(data_folder / "speech_commands" / "00176480_nohash_0_bed.wav")
    spectrum = torch.stft(
        torch.from_numpy(wave.astype(np.float64)),
        1024,
        160,
        window=torch.hann_window(1024, dtype=torch.float64),
        return_complex=True,
    )
    power = (spectrum.abs() ** 2).T.numpy()
    mels = audio._mel_filters(16_000, 1024, 128)
    expected = 10 * np.log10(np.maximum(power @ mels, 1e-10))
    found = audio.log_mel(wave, audio.FeatureSettings())
    np.testing.assert_allclose(found, expected, atol=1e-4)
