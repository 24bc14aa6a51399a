"""generate.images with LoRA weights, with a formula for a generator."""

import hashlib
import json

import pytest

from generate import images, prompts
from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.released import lora

from .test_images import FormulaModel, make_config


def test_lora_weights_are_on_record(tmp_path, monkeypatch):
    """Each line names them and their licence, the settings their content."""
    monkeypatch.setattr(images, "StableDiffusion", FormulaModel)
    monkeypatch.setattr(FormulaModel, "loras", [])
    workdir = tmp_path / "run"
    prompts.run(make_config(), workdir)
    file = tmp_path / "drawn" / lora.FILE
    artifacts.write_bytes(file, b"weights")
    (file.parent / "README.md").write_text("---\nlicense: openrail++\n---\n")
    config = make_config(lora=str(file.parent), lora_scale=0.5)
    images.run(config, workdir)
    assert FormulaModel.loras == [(str(file.parent), 0.5)]
    lines = artifacts.read_manifest(workdir / "synthetic")
    assert {line.lora for line in lines} == {f"{file.parent}, scale 0.5"}
    assert {line.licence for line in lines} == {"unknown, openrail++"}
    settings = json.loads((workdir / "synthetic" / "settings.json").read_text())
    digest = f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert settings["content of the LoRA weights"] == digest
    assert settings["config.generate.lora_scale"] == 0.5
    with pytest.raises(UserError, match="lora_scale = 0.5, now it is 1.0"):
        images.run(make_config(lora=str(file.parent)), workdir)
    with pytest.raises(UserError, match=r"config\.generate\.lora = .*, now it is ''"):
        images.run(make_config(), workdir)
    artifacts.write_bytes(file, b"others")
    with pytest.raises(UserError, match="another content of the LoRA weights"):
        images.run(config, workdir)
