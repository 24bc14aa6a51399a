"""Training of the small drums, at toy size: no recording is needed."""

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.numpy import load_file

from gptfl_jax import artifacts, configuration, launch
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from train.drums import program


def tiny_config(**fields):
    config = launch.read_config("drums")
    settings = {
        "recordings": "",
        "strokes": 8,
        "vae_channels": (4, 4, 4),
        "latent_channels": 2,
        "vae_steps": 3,
        "unet_channels": (16,),
        "text_features": 8,
        "text_layers": 1,
        "unet_steps": 4,
        "vocoder_channels": 8,
        "segment_frames": 4,
        "vocoder_batch_size": 2,
        "vocoder_steps": 3,
        "adversarial_steps": 2,
        "batch_size": 4,
        "checkpoint_every": 2,
        "log_every": 1,
        "test_samples": 0,
        "test_solver_steps": 2,
    }
    config.text_to_sound.update(settings | fields)
    configuration.validate(config)
    return config


@pytest.mark.long
def test_a_run_writes_a_model(tmp_path):
    program.run(tiny_config(), tmp_path)
    folder = tmp_path / "model"
    for file in folder.rglob("*.safetensors"):
        weights = load_file(file).values()
        assert {w.dtype for w in weights if w.dtype.kind == "f"} == {
            np.dtype(np.float16)
        }
    for phase, steps in (("vae", 3), ("unet", 4), ("vocoder", 3), ("adversarial", 2)):
        lines = artifacts.read_metrics(tmp_path / phase / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
    pipeline = AudioLDM.from_pretrained(folder)
    waves = pipeline(
        ["bright snare drum", "kick drum"],
        key=jax.random.key(0),
        num_steps=2,
        duration_s=1.024,
    )
    assert waves.shape == (2, 16_384) and np.isfinite(waves).all()
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (8 * 2 * 32, 12 * 2 * 64)
    clips = sorted((tmp_path / "samples").glob("*.wav"))
    assert len(clips) == 6 * 8 * 2
    assert {soundfile.info(clip).frames for clip in clips} == {16_384}
