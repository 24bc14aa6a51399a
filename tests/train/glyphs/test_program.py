"""Training of the small generator, on pen paths alone: no font is needed."""

import io
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from gptfl_jax import artifacts, configuration, devices, launch
from gptfl_jax.errors import UserError
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from train.glyphs import program, shapes
from train.glyphs.prompts import all_prompts


@pytest.fixture(scope="module")
def pen_atlas():
    """`atlas.npz` of pen paths, as a run keeps it in its workdir."""
    fields, digits = shapes.pen_shapes(per_digit=2)
    no_width = np.zeros(len(digits), np.float32)
    atlas = shapes.make_atlas(fields, digits, no_width, np.ones(len(digits), bool))
    buffer = io.BytesIO()
    np.savez(buffer, **atlas._asdict())
    return buffer.getvalue()


def tiny_config(**fields):
    config = launch.read_config("glyphs")
    settings = {
        "vae_channels": (4, 4),
        "unet_channels": (16,),
        "text_features": 16,
        "text_layers": 1,
        "vae_steps": 3,
        "unet_steps": 6,
        "pictures": 16,
        "batch_size": 8,
        "checkpoint_every": 2,
        "log_every": 1,
        "test_samples": 0,
        "test_steps": 2,
    }
    config.text_to_image.update(settings | fields)
    configuration.validate(config)
    return config


@pytest.mark.long
def test_a_run_writes_a_pipeline(tmp_path, pen_atlas):
    whole = tmp_path
    artifacts.write_bytes(whole / "atlas.npz", pen_atlas)
    program.run(tiny_config(), whole)
    for part in ("text_encoder/model", "unet/diffusion_pytorch_model"):
        weights = load_file(whole / "model" / f"{part}.safetensors")
        assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    for phase, steps in (("vae", 3), ("unet", 6)):
        lines = artifacts.read_metrics(whole / phase / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, steps + 1))

    # What was written is a pipeline, and its sample sheet shows 10 rows of 18.
    pipeline = StableDiffusion.from_pretrained(whole / "model")
    with Image.open(whole / "samples.png") as sheet:
        assert sheet.size == (18 * 64, 10 * 64)
    scale = json.loads((whole / "model/vae/config.json").read_text())["scaling_factor"]
    latents, described = program.encode_pictures(
        jax.random.fold_in(jax.random.key(0), program._PICTURES),
        program._load_atlas(whole, tiny_config()),
        pipeline.networks.vae,
        pipeline.params["vae"],
        16,
    )
    assert (scale * latents).std() == pytest.approx(1, abs=1e-2)
    assert described.max() < len(all_prompts())


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    mesh = types.SimpleNamespace(size=2)
    monkeypatch.setattr(devices, "for_steps", lambda batch_size: mesh)
    with pytest.raises(
        UserError, match="config.text_to_image.batch_size = 7.*devices, 2"
    ):
        program.run(tiny_config(batch_size=7), tmp_path)
