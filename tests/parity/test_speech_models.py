"""Features from speech networks, against the networks of transformers themselves."""

import numpy as np
import pytest
import torch
import transformers

from gptfl_jax.data import audio, sources, speech_models
from gptfl_jax.data.audio import FeatureSettings
from gptfl_jax.errors import UserError
from tests import recordings

SMALL = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 16, "conv_dim": (8, 8), "conv_stride": (5, 4)},
    **{"conv_kernel": (10, 8), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
KINDS = {
    "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
    "hubert": (transformers.HubertConfig, transformers.HubertModel),
}


def save(folder, kind="wav2vec2", seed=0, normalised=True):
    config, network = KINDS[kind]
    torch.manual_seed(seed)
    network = network(config(**SMALL)).eval()
    network.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=8000, do_normalize=normalised
    ).save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_last_hidden_state(kind, tmp_path):
    network = save(tmp_path, kind, normalised=kind == "wav2vec2")
    wave = np.random.default_rng(0).normal(0.3, 0.2, 500).astype(np.float32)
    heard = wave
    if kind == "wav2vec2":
        heard = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    with torch.no_grad():
        expected = network(torch.tensor(heard[None])).last_hidden_state[0].numpy()
    settings = FeatureSettings(kind=str(tmp_path), standardise=False)
    features = audio.compute(wave, settings)
    np.testing.assert_allclose(features, expected, atol=1e-5)
    # A frame every 20 samples of windows of 45.
    assert speech_models.shape(str(tmp_path))[1:] == (20, 45, 16)
    assert features.shape == ((500 - 45) // 20 + 1, 16)
    assert audio.compute(wave[:9], settings).shape == (1, 16)


def test_a_data_set_of_them_is_kept(tmp_path):
    for seed in range(2):
        save(tmp_path / f"network{seed}", seed=seed)
    recordings.write_fsdd(tmp_path / "fsdd", takes=(0, 5), digits=2)

    def load(network, folder="fsdd"):
        return sources.load(
            *("fsdd", str(tmp_path / folder)),
            features={"kind": str(tmp_path / network), "max_duration_s": 0.13},
            cache=str(tmp_path / "cache"),
        )

    source = load("network0")
    features, lengths = source.train.inputs
    # Of 0.1, 0.12 and 0.13 s at 8 kHz.
    assert sorted(set(lengths)) == [38, 46, 50] and features.shape[1:] == (50, 16)
    assert source.sounds.settings.num_bands == 16
    first = features[0, : lengths[0]]
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-5)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/*/*.npy")}
    assert len(kept) == 12
    again = load("network0")
    np.testing.assert_array_equal(again.train.inputs[0], features)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    other = load("network1")
    assert np.abs(other.train.inputs[0] - features).max() > 0.1
    assert len(list(tmp_path.glob("cache/*/*.npy"))) == 24


def test_only_whole_safetensors_are_read(tmp_path):
    save(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    content = file.read_bytes()
    wave = np.zeros(100, np.float32)
    damaged = tmp_path / "damaged"
    save(damaged)
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read as a speech network"):
        speech_models.compute(wave, str(damaged))
    pickled = tmp_path / "pickled"
    save(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds none of model.safetensors"):
        speech_models.compute(wave, str(pickled))
