import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest
import small_audioldm

from gptfl_jax import planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import sampling
from gptfl_jax.generators.sounds import audioldm
from gptfl_jax.generators.sounds.audioldm import AudioLDM

PROMPTS = ["a dog", "rain", "a sound of rain"]
# 11 frames, so one of the 12 that six latents stand for is cut off.
SECONDS = 11 * 20 / 16_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_audioldm.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def pipeline(tokenizer):
    parameters = small_audioldm.parameters()
    return AudioLDM(
        small_audioldm.networks(), parameters, tokenizer, small_audioldm.SOLVER
    )


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), len(PROMPTS))


def waves(pipeline, prompts=PROMPTS, **options):
    options = {"num_steps": 2, "duration_s": SECONDS} | options
    return np.asarray(pipeline(prompts, **options))


def assert_same(one, other):
    assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()


def assert_different(one, other):
    assert np.abs(one - other).max() > 1e-2 * np.abs(other).max()


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_waves_equal_torch(guidance_scale):
    reference = ported_models.load("pipeline_audioldm")
    output = ported_models.audioldm_waves(reference, guidance_scale)
    assert output.dtype == np.float32
    expected = reference[f"waves_{guidance_scale:g}"]
    assert ported_models.relative_error(output, expected) < 1e-3


def test_samples_are_their_own(pipeline, keys):
    """What stands beside a sample, one key for all and latents change nothing."""
    scales = [1.0, 2.5, 5.0]
    all_three = waves(pipeline, key=keys, guidance_scale=scales)
    assert all_three.shape == (3, 220) and all_three.dtype == np.float32
    for row, scale in enumerate(scales):
        alone = waves(
            pipeline,
            [PROMPTS[row]] * 3,
            key=keys[jnp.array([row] * 3)],
            guidance_scale=[scale, 2.5, 2.5],
        )
        assert_same(alone[0], all_three[row])
    folded = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(5), jnp.arange(3))
    one = waves(pipeline, key=jax.random.key(5), guidance_scale=scales)
    np.testing.assert_array_equal(
        one, waves(pipeline, key=folded, guidance_scale=scales)
    )
    shape = pipeline.networks.latent_shape(SECONDS)
    latents = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    given = waves(pipeline, latents=latents, guidance_scale=scales)
    assert_same(given, all_three)


def test_guidance_and_negative_prompts(pipeline, keys):
    """Guidance is linear in what it steers away from; a prompt steers from itself."""
    scales = np.full(3, 3.0)
    same = waves(pipeline, key=keys, guidance_scale=scales, negative_prompts=PROMPTS)
    assert_same(same, waves(pipeline, key=keys, guidance_scale=1.0))
    nothing = waves(pipeline, key=keys, guidance_scale=scales)
    empty = waves(pipeline, key=keys, guidance_scale=scales, negative_prompts="")
    np.testing.assert_array_equal(nothing, empty)
    assert_different(nothing, same)


def test_the_loop_of_accelerators_gives_the_same(pipeline, keys, monkeypatch):
    on_host = waves(pipeline, key=keys)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    calls = []
    programs = sampling.programs_of
    monkeypatch.setattr(
        sampling,
        "programs_of",
        lambda *args: programs(*args)._replace(step=calls.append, begin=calls.append),
    )
    assert_same(waves(pipeline, key=keys), on_host)
    assert not calls


def test_prompts_are_filled_up_to_few_lengths_and_cut(pipeline):
    assert pipeline._tokenize(["a", "rain"]).shape == (2, 32)
    tokens = pipeline._tokenize(["rain " * 20])
    assert tokens.shape == (1, 32) and tokens[0, -1] == 2
    first = [small_audioldm.VOCABULARY[token] for token in tokens[0, :7]]
    assert first == ["<s>", *"rain", "Ġ", "r"]


def test_durations(pipeline):
    networks = pipeline.networks
    assert networks.latent_shape(SECONDS) == (6, 2, 4)
    assert networks.num_samples(SECONDS) == 220
    for seconds in (0.0024, -1.0, float("nan"), 1e9):
        with pytest.raises(UserError, match="duration_s = .*: takes 0.0025 to 86,400"):
            networks.latent_shape(seconds)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "a key, or latents"),
        ({"latents": np.zeros((3, 5, 2, 4))}, r"takes \(3, 6, 2, 4\) for 3 prompts"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "2 keys for 3 prompts"),
        ({"key": jax.random.key(0), "guidance_scale": [1.0]}, "guidance_scale"),
        ({"key": jax.random.key(0), "negative_prompts": [""]}, "1 negative prompts"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        waves(pipeline, **options)


def test_the_lowered_programs_make_the_sounds_of_a_run(pipeline, keys):
    lowered = audioldm.lower(
        pipeline.networks,
        SECONDS,
        placement.mesh(),
        batch=len(PROMPTS),
        num_steps=2,
        guided=True,
        solver=pipeline.solver,
    )
    programs = {name: each.compile() for name, each in lowered.programs.items()}
    tokens = pipeline._tokenize(PROMPTS)
    start = sampling.Start(
        tokens, pipeline._tokenize([""]), np.full(3, 2.5, np.float32), keys, None
    )
    conditions, state = programs["texts"](pipeline.params, start)
    schedule = pipeline.solver.schedule(2)
    for i in range(2):
        row = jax.tree.map(lambda column, i=i: column[i], schedule)
        arguments = row, conditions, start.guidance, state
        state = programs["a step"](pipeline.params["unet"], *arguments)
    decoder = pipeline.networks.decoder(pipeline.params)
    found = programs["decoding"](decoder, state.sample)[:, :220]
    np.testing.assert_array_equal(found, waves(pipeline, key=keys))


# Files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_pipeline_is_the_same(pipeline, saved):
    again = AudioLDM.from_pretrained(saved)
    chex.assert_trees_all_equal(again.params, pipeline.params)
    assert again.solver == pipeline.solver
    assert again.networks == pipeline.networks == audioldm.networks_of(saved)
    np.testing.assert_array_equal(again._tokenize(PROMPTS), pipeline._tokenize(PROMPTS))
    half = AudioLDM.from_pretrained(saved, dtype="bfloat16").params
    assert half["unet"]["conv_in"]["kernel"].dtype == jnp.bfloat16
    assert half["vocoder"]["params"]["conv_pre"]["kernel"].dtype == jnp.bfloat16
    half = AudioLDM.from_pretrained(saved, dtype="float16").params
    kinds = {n: {str(x.dtype) for x in jax.tree.leaves(t)} for n, t in half.items()}
    assert kinds == {
        "text_encoder": {"float16"},
        "unet": {"float16"},
        "vae": {"float32"},
        "vocoder": {"float32"},
    }


def test_a_tokenizer_of_vocabulary_and_merges_is_read(pipeline, folder, tmp_path):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    small_audioldm.tokenizer(folder / "tokenizer")
    again = AudioLDM.from_pretrained(folder)
    np.testing.assert_array_equal(again._tokenize(PROMPTS), pipeline._tokenize(PROMPTS))


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "file, values, message",
    [
        (
            "model_index.json",
            {"_class_name": "AudioLDM2Pipeline"},
            "model_index.json: AudioLDM2Pipeline is no AudioLDM pipeline of the first",
        ),
        (
            "unet/config.json",
            {"in_channels": 3},
            "unet/config.json: in_channels = 3, but .* need 4",
        ),
        (
            "unet/config.json",
            {
                "class_embed_type": None,
                "projection_class_embeddings_input_dim": None,
                "class_embeddings_concat": False,
            },
            "projection_class_embeddings_input_dim = None, but .* need 6",
        ),
        ("vae/config.json", {"out_channels": 3}, "vae/config.json: out_channels = 3"),
        ("vocoder/config.json", {"model_in_dim": 5}, "vocoder/config.json: model_in"),
        (
            "text_encoder/config.json",
            {"vocab_size": 9},
            "text_model.embeddings.word_embeddings.weight has shape",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, file, values, message):
    change_json(folder / file, **values)
    with pytest.raises(UserError, match=message):
        AudioLDM.from_pretrained(folder)


def test_a_folder_without_a_vocoder_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    del index["vocoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model_index.json: names no vocoder"):
        AudioLDM.from_pretrained(folder)


def test_the_release_by_its_sizes(monkeypatch):
    """cvssp/audioldm: parameters as PyTorch counts them, shapes of 5 s."""

    def out_of_reach(*_):
        raise audioldm.hub.ModelNotFound("someone/audioldm-l-full: out of reach")

    monkeypatch.setattr(audioldm.hub, "snapshot", out_of_reach)
    networks = audioldm.networks_of("cvssp/audioldm-s-full-v2")
    with pytest.raises(UserError, match="audioldm-l-full"):
        audioldm.networks_of("someone/audioldm-l-full")
    networks.check()
    shapes = networks.shapes()
    shapes["vocoder"] = shapes["vocoder"]["params"]
    assert {name: planning.parameters(tree) for name, tree in shapes.items()} == {
        "text_encoder": 125_302_016,
        "unet": 185_036_552,
        "vae": 55_376_873,
        "vocoder": 55_264_897,
    }
    assert networks.latent_shape(5.0) == (125, 16, 8)
    assert networks.latent_shape(5.12) == (128, 16, 8)
    assert networks.num_samples(5.12) == 81_920
