"""Training of the small generator, on pen paths alone: no font is needed."""

import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from gptfl_jax import artifacts, configuration, devices
from gptfl_jax.data import glyphs
from gptfl_jax.errors import UserError
from gptfl_jax.generators.stable_diffusion import StableDiffusion
from train import text_to_image


@pytest.fixture(scope="module")
def tokenizer():
    return text_to_image.prompt_tokenizer()


@pytest.fixture(scope="module")
def shapes():
    """`atlas.npz` of pen paths, as a run keeps it in its workdir."""
    fields, digits = glyphs.pen_shapes(per_digit=2)
    no_width = np.zeros(len(digits), np.float32)
    atlas = glyphs.make_atlas(fields, digits, no_width, np.ones(len(digits), bool))
    buffer = io.BytesIO()
    np.savez(buffer, **atlas._asdict())
    return buffer.getvalue()


def tiny_config(**fields):
    config = configuration.default_config("text_to_image")
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


def test_every_word_of_the_prompts_is_one_token(tokenizer):
    prompt = glyphs.prompt(7, "chalk", "medium", "tilted", "light", "filling the frame")
    assert tokenizer.tokenize(prompt) == [
        f"{word}</w>" for word in prompt.replace(",", " ,").split()
    ]


def test_no_prompt_is_cut(tokenizer):
    table = text_to_image.token_table(tokenizer)
    assert table.shape == (13441, text_to_image.PROMPT_TOKENS)
    assert (table[:, 0] == tokenizer.bos_token_id).all()
    assert (table[:, -1] == tokenizer.eos_token_id).all()
    assert len(np.unique(table, axis=0)) == len(table)
    empty = [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 19
    assert table[-1].tolist() == empty


def test_tokens_decode_to_the_prompt(tokenizer):
    for prompt in glyphs.all_prompts()[::997]:
        tokens = tokenizer(prompt)["input_ids"]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert " ".join(text.replace(",", " , ").split()) == prompt.replace(",", " ,")


def test_any_text_has_tokens(tokenizer):
    tokens = tokenizer("Zebra, naïve 42!")["input_ids"]
    assert tokenizer.eos_token_id not in tokens[1:-1]
    assert tokenizer.decode(tokens, skip_special_tokens=True).startswith("zebra")


def test_saved_tokenizers_are_the_same(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == text_to_image.PROMPT_TOKENS
    text = ["a chalk digit nine, small", "unknown words", ""]
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_denoising_loss_of_a_perfect_prediction_is_zero():
    # A network that returns the true velocity, told apart by its inputs: at the last
    # level alpha is 0, so that the velocity is minus the latents.
    class Text:
        def apply(self, variables, tokens):
            return jnp.zeros((len(tokens), 1, 1))

    class Denoiser:
        def apply(self, variables, noisy, levels, context):
            return -variables["params"]

    networks = type("Networks", (), {"text_encoder": Text(), "unet": Denoiser()})()
    latents = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    params = {"text_encoder": {}, "unet": latents}
    tokens = jnp.zeros((3, 5), jnp.int32)
    arguments = (params, latents, tokens, jax.random.key(1))
    assert text_to_image.denoising_loss(networks, np.zeros(1), *arguments) == 0
    # With noise as strong as the latents the error is the noise's and the rest's.
    half = text_to_image.denoising_loss(networks, np.full(1, 0.5), *arguments)
    noise = jax.random.normal(jax.random.split(jax.random.key(1))[1], latents.shape)
    velocity = np.sqrt(0.5) * (noise - latents)
    np.testing.assert_allclose(half, ((velocity + latents) ** 2).mean(), rtol=1e-5)


def test_autoencoder_loss_adds_its_three_terms():
    class Autoencoder:
        def apply(self, variables, inputs, method):
            if method == "encode":
                mean = jnp.full((len(inputs), 1, 1, 1), 2.0)
                return mean, jnp.full_like(mean, jnp.log(0.25))
            return jnp.full((len(inputs), 32, 32, 3), 0.5)

    pictures = jnp.full((2, 32, 32, 3), 255, jnp.uint8)  # 1 in [-1, 1]
    loss = text_to_image.vae_loss(Autoencoder(), 0.1, {}, pictures, jax.random.key(0))
    kl = 0.5 * (4 + 0.25 - 1 - np.log(0.25))
    np.testing.assert_allclose(loss, 0.5 + 0.25 + 0.1 * kl, rtol=1e-6)


@pytest.mark.long
def test_a_run_writes_a_pipeline(tmp_path, shapes):
    whole = tmp_path
    artifacts.write_bytes(whole / "atlas.npz", shapes)
    text_to_image.run(tiny_config(), whole)
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
    latents, prompts = text_to_image.encode_pictures(
        jax.random.fold_in(jax.random.key(0), text_to_image._PICTURES),
        text_to_image._load_atlas(whole, tiny_config()),
        pipeline.networks.vae,
        pipeline.params["vae"],
        16,
    )
    assert (scale * latents).std() == pytest.approx(1, abs=1e-2)
    assert prompts.max() < len(glyphs.all_prompts())


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path, monkeypatch):
    mesh = types.SimpleNamespace(size=2)
    monkeypatch.setattr(devices, "for_steps", lambda batch_size: mesh)
    with pytest.raises(
        UserError, match="config.text_to_image.batch_size = 7.*devices, 2"
    ):
        text_to_image.run(tiny_config(batch_size=7), tmp_path)


def test_a_sheet_lays_pictures_out_in_rows(tmp_path):
    pictures = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    pictures = np.broadcast_to(pictures, (7, 32, 32, 3))
    text_to_image.save_sheet(tmp_path / "sheet.png", pictures, columns=3)
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * 64, 3 * 64, 3)  # the seventh has no full row
    assert sheet[::64, ::64, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_quality_is_read_off_real_digits():
    # Real digits as pictures: a classifier fitted on them knows them.
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.repeat(np.repeat(digits.images * 15, 4, 1), 4, 2).astype(np.uint8)
    pictures = np.repeat(grey[..., None], 3, -1)
    quality = text_to_image.digits_accuracy(pictures[:1415], digits.target[:1415])
    assert quality["accuracy_first_11_sessions"] > 0.99
    assert 0.9 < quality["accuracy_last_3_sessions"] < 1
    # Shuffled labels teach nothing.
    wrong = text_to_image.digits_accuracy(
        pictures[:500], np.random.default_rng(0).permutation(digits.target[:500])
    )
    assert wrong["accuracy"] < 0.3
