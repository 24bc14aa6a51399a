"""The generator shipped in `gptfl_jax/assets/glyphs`: it draws what prompts ask for."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import gptfl_jax
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.released import hub
from train.glyphs import drawing, prompts, quality, shapes

FOLDER = pathlib.Path(gptfl_jax.__file__).parent / "assets" / "glyphs"
LOOK = {"background": "dark", "framing": "filling the frame"}


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusion.from_pretrained("glyphs")


@pytest.fixture(scope="module")
def samples(pipeline):
    """Pictures and labels of 500 handwritten digits."""
    return quality.sample_digits(
        pipeline, jax.random.key(7), 500, num_steps=10, guidance_scale=2.0
    )


def blocks(pictures):
    """8x8 grey block means in [0, 1], as rows."""
    grey = np.asarray(pictures, np.float32).mean(-1) / 255
    return grey.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(len(grey), 64)


@pytest.fixture(scope="module")
def reader():
    """A classifier fitted on rendered pen strokes, which needs no fonts."""
    fields, digits = shapes.pen_shapes(per_digit=30, seed=2)
    no_width = np.zeros(len(digits), np.float32)
    atlas = shapes.make_atlas(fields, digits, no_width, np.ones(len(digits), bool))
    labels = jnp.arange(1500) % 10
    words = [jnp.full(1500, v, jnp.int32) for v in (1, 0, 0, 1, 1)]
    keys = jax.random.split(jax.random.key(0), 1500)
    draw = jax.jit(jax.vmap(drawing.draw, (0, None, 0)))
    pictures, _ = draw(keys, atlas, prompts.Attributes(labels, *words))
    return LogisticRegression(C=1.0, max_iter=300).fit(blocks(pictures), labels)


def test_it_is_small_and_complete():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    names = {str(path.relative_to(FOLDER)) for path in files}
    assert names >= {
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    scheduler = json.loads((FOLDER / "scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    for path in FOLDER.rglob("*.safetensors"):
        weights = hub.read_weights(path).values()
        assert {value.dtype for value in weights} == {np.dtype(np.float16)}


@pytest.mark.long
def test_the_digit_is_the_one_in_the_prompt(samples, reader):
    pictures, labels = samples
    assert reader.score(blocks(pictures), labels) >= 0.85


@pytest.mark.long
def test_samples_alone_teach_to_read_handwriting(samples):
    """What is asked of 5,000 samples, of a tenth; the model card has the rest."""
    assert quality.digits_accuracy(*samples)["accuracy"] >= 0.75


def test_looks_follow_the_prompt(pipeline):
    def ink(**look):
        texts = [prompts.prompt(d, **look) for d in range(10)] * 2
        pictures = pipeline(
            texts, key=jax.random.key(3), num_steps=10, guidance_scale=3.0
        )
        return np.asarray(pictures, np.float32).mean() / 255

    thin, thick = (ink(weight=weight, **LOOK) for weight in ("thin", "thick"))
    assert thin * 1.5 < thick
    light = ink(weight="medium", background="light", framing="filling the frame")
    assert light > 0.5 > thick


def test_one_prompt_gives_different_pictures(pipeline):
    texts = [prompts.prompt(5, **LOOK)] * 20
    pictures = pipeline(texts, key=jax.random.key(1), num_steps=10, guidance_scale=2.0)
    pictures = np.asarray(pictures, np.float32).mean(-1) / 255
    differences = np.abs(pictures[:, None] - pictures[None]).mean((2, 3))
    others = differences[~np.eye(20, dtype=bool)]
    assert np.percentile(others, 10) > 0.08
