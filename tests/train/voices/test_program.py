"""Training of the small voices, on tones: no synthesizer is needed."""

import io
import json

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.numpy import load_file

from gptfl_jax import artifacts, configuration, launch
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.generators.speech.speakers import read_speakers
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from train.voices import program, synthesizers
from train.voices.corpus import make_corpus, voices_of


def tiny_config(**fields):
    config = launch.read_config("voices")
    settings = {
        "words": ("zero", "one", "cat"),
        "engines": ("hibari",),
        "max_frames": 16,
        "features": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "postnet_features": 4,
        "speaker_features": 4,
        "speech_steps": 4,
        "vocoder_channels": 8,
        "segment_frames": 8,
        "vocoder_batch_size": 2,
        "vocoder_steps": 3,
        "adversarial_steps": 2,
        "batch_size": 4,
        "checkpoint_every": 2,
        "log_every": 1,
        "test_samples": 0,
    }
    config.text_to_speech.update(settings | fields)
    configuration.validate(config)
    return config


@pytest.fixture(scope="module")
def corpus():
    """Words as tones, a pitch for each voice of hibari and a length for each word."""
    clips = [
        [
            0.3 * np.sin(0.05 * (voice + 3) * np.arange(1200 + 500 * word))
            for word in range(3)
        ]
        for voice in range(24)
    ]
    clips = [[clip.astype(np.float32) for clip in spoken] for spoken in clips]
    return make_corpus(clips, 16, 4)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="max_frames = 18: takes a multiple of .* 4"):
        tiny_config(max_frames=18)
    with pytest.raises(ConfigError, match="segment_frames = 20: takes at most"):
        tiny_config(segment_frames=20)
    with pytest.raises(UserError, match="engines: no festival; there are espeak-ng"):
        voices_of(tiny_config(engines=("festival", "flite")).text_to_speech)


@pytest.mark.long
def test_a_run_writes_a_voice(tmp_path, corpus):
    buffer = io.BytesIO()
    np.savez(buffer, **corpus._asdict())
    for name in ("corpus.npz", "held_out.npz"):
        artifacts.write_bytes(tmp_path / name, buffer.getvalue())
    program.run(tiny_config(), tmp_path)
    folder = tmp_path / "model"
    for part in (folder, folder / "vocoder"):
        weights = load_file(part / "model.safetensors").values()
        assert {w.dtype for w in weights if w.dtype.kind == "f"} == {
            np.dtype(np.float16)
        }
    for phase, steps in (("speech", 4), ("vocoder", 3), ("adversarial", 2)):
        lines = artifacts.read_metrics(tmp_path / phase / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, steps + 1))

    speakers = read_speakers(folder / "speakers")
    voices = [v.name for v in synthesizers.voices() if v.engine == "hibari"]
    assert sorted(speakers.names) == sorted(voices)
    np.testing.assert_allclose(np.linalg.norm(speakers.vectors, axis=1), 1, rtol=1e-6)
    pipeline = TextToSpeech.from_pretrained(folder, folder / "vocoder")
    waves, lengths = pipeline(["one"], speakers.vectors[:1], key=jax.random.key(0))
    assert waves.shape[1] >= lengths[0] > 0
    statistics = json.loads((folder / "vocoder" / "config.json").read_text())
    assert statistics["upsample_rates"] == [8, 8, 4]
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (2 * 8 * 64, 2 * 4 * 80)
    clips = sorted((tmp_path / "samples").glob("*.wav"))
    assert len(clips) == 32
    for clip in clips:
        assert soundfile.info(clip).samplerate == 16000
    # Started again it finds all phases done, and writes the same.
    before = (folder / "model.safetensors").read_bytes()
    program.run(tiny_config(), tmp_path)
    assert (folder / "model.safetensors").read_bytes() == before
