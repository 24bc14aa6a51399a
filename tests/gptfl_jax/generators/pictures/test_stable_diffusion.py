import fnmatch
import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest
from small_pipeline import LENGTH, SOLVER, VOCABULARY, networks, parameters

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import sampling
from gptfl_jax.generators.diffusion.solvers import DDIM
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.pictures.sampling import Networks
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.released import hub


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A CLIP tokenizer of single letters, from files as the releases have them."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        model_max_length=LENGTH,
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="module")
def pipeline(tokenizer):
    return StableDiffusion(networks(), parameters(), tokenizer, SOLVER)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(7), 3)


PROMPTS = ["a cat", "dog", "x y z"]


def images(pipeline, prompts, **options):
    return np.asarray(pipeline(prompts, num_steps=3, **options)).astype(int)


def assert_same(one, other):
    """Equal but for rounding to whole numbers."""
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= 1


def assert_different(one, other):
    assert np.abs(one - other).max() > 3


# Against torch ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipeline_1x", "pipeline_2x"])
def test_images_equal_torch(name):
    """Both strengths in one batch; tests/parity has them apart."""
    reference = ported_models.load(name)
    expected = [reference["images_1"], reference["images_7.5"]]
    for key in ("tokens", "latents"):
        rows = reference[key]
        empty = rows[:1] if key == "tokens" else rows[:0]
        rows = rows[len(empty) :]
        reference[key] = np.concatenate([empty, rows, rows])
    scales = np.repeat([1.0, 7.5], len(expected[0]))
    ours = ported_models.pipeline_images(reference, scales)
    assert ours.dtype == np.uint8 and ours.std() > 20
    assert np.abs(ours.astype(int) - np.concatenate(expected)).max() <= 1


# What an image depends on -----------------------------------------------------------


def test_a_sample_does_not_depend_on_its_batch(pipeline, keys):
    together = images(pipeline, PROMPTS, key=keys)
    assert together.shape == (3, 8, 8, 3)
    assert_different(together[0], together[1])
    for i, prompt in enumerate(PROMPTS):
        assert_same(images(pipeline, [prompt], key=keys[i : i + 1])[0], together[i])


def test_one_key_gives_each_sample_its_own(pipeline):
    key = jax.random.key(3)
    folded = jnp.stack([jax.random.fold_in(key, i) for i in range(3)])
    one = images(pipeline, PROMPTS, key=key)
    np.testing.assert_array_equal(one, images(pipeline, PROMPTS, key=folded))


def test_given_latents_are_the_noise_of_the_keys(pipeline, keys):
    noise = jnp.stack([jax.random.normal(key, (4, 4, 4)) for key in keys])
    drawn = images(pipeline, PROMPTS, key=keys)
    assert_same(images(pipeline, PROMPTS, latents=noise), drawn)
    assert_same(images(pipeline, PROMPTS, latents=np.asarray(noise)), drawn)


def test_guidance_differs_by_sample(pipeline, keys):
    scales = [1.0, 3.0, 7.5]
    mixed = images(pipeline, PROMPTS, key=keys, guidance_scale=scales)
    for i, scale in enumerate(scales):
        alone = images(pipeline, PROMPTS, key=keys, guidance_scale=scale)
        assert_same(alone[i], mixed[i])
        if i:
            assert_different(alone[0], mixed[0])
    below = images(pipeline, PROMPTS, key=keys, guidance_scale=np.array([0.0, 3, 7.5]))
    np.testing.assert_array_equal(below, mixed)


def test_negative_prompts(pipeline, keys):
    none = images(pipeline, PROMPTS, key=keys)
    np.testing.assert_array_equal(
        none, images(pipeline, PROMPTS, key=keys, negative_prompts="")
    )
    one = images(pipeline, PROMPTS, key=keys, negative_prompts="q")
    assert_different(one[0], none[0])
    each = images(pipeline, PROMPTS, key=keys, negative_prompts=["", "q", "r"])
    assert_same(each[0], none[0])
    assert_same(each[1], one[1])
    assert_different(each[2], one[2])
    # Without guidance there is nothing to steer away from.
    plain = functools.partial(images, pipeline, PROMPTS, key=keys, guidance_scale=1)
    np.testing.assert_array_equal(plain(), plain(negative_prompts="q"))


def test_what_exceeds_the_encoder_is_cut(pipeline, keys):
    # Start, six letters, end.
    cut = images(pipeline, ["a b c d e f"], key=keys[:1])
    long = images(pipeline, ["a b c d e f g h i"], key=keys[:1])
    np.testing.assert_array_equal(cut, long)


def test_sizes(pipeline, keys):
    image = images(pipeline, ["a"], key=keys[:1], height=12, width=6)
    assert image.shape == (1, 12, 6, 3)
    latents = np.zeros((1, 6, 3, 4), np.float32)
    assert images(pipeline, ["a"], latents=latents).shape == (1, 12, 6, 3)


# How it is computed -----------------------------------------------------------------


def test_the_loop_of_accelerators_gives_the_same(pipeline, keys, monkeypatch):
    on_host = images(pipeline, PROMPTS, key=keys)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    calls = []
    sample = sampling.programs_of
    monkeypatch.setattr(
        sampling,
        "programs_of",
        lambda *args: sample(*args)._replace(step=calls.append, begin=calls.append),
    )
    assert_same(images(pipeline, PROMPTS, key=keys), on_host)
    assert not calls


def test_bfloat16_follows_float32(pipeline, tokenizer, keys, tmp_path):
    pipeline.save_pretrained(tmp_path)
    half = StableDiffusion.from_pretrained(tmp_path, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    options = {"key": keys, "guidance_scale": 1.0}
    difference = images(half, PROMPTS, **options) - images(pipeline, PROMPTS, **options)
    assert 0 < np.abs(difference).mean() < 4


def test_float16_follows_float32_where_the_autoencoder_leaves_its_range(
    tokenizer, keys, tmp_path
):
    """Latents a million times as large inside, which its norms take back."""
    large = parameters()
    layer = large["vae"]["decoder"]["conv_in"]
    layer |= {name: 1e6 * value for name, value in layer.items()}
    whole = StableDiffusion(networks(), large, tokenizer, SOLVER)
    whole.save_pretrained(tmp_path)
    half = StableDiffusion.from_pretrained(tmp_path, dtype="float16")
    for name, tree in half.params.items():
        kept = "float32" if name == "vae" else "float16"
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype(kept)}
    options = {"key": keys, "guidance_scale": 1.0}
    made, expected = images(half, PROMPTS, **options), images(whole, PROMPTS, **options)
    assert expected.std() > 20
    assert 0 < np.abs(made - expected).mean() < 0.5


DEVICES = """
import sys
import jax, numpy as np
sys.path[:0] = sys.argv[1:3]
import small_pipeline
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from ported_models import RecordedTokenizer

jax.config.update("jax_disable_most_optimizations", True)
rng = np.random.RandomState(0)
tokens = rng.randint(0, len(small_pipeline.VOCABULARY), (6, small_pipeline.LENGTH))
keys = jax.random.split(jax.random.key(7), 5)
for count in (1, 2, 8):
    pipeline = StableDiffusion(
        small_pipeline.networks(),
        small_pipeline.parameters(),
        RecordedTokenizer(tokens),
        small_pipeline.SOLVER,
        jax.local_devices()[:count],
    )
    images = pipeline(
        list("12345"),
        key=keys,
        num_steps=2,
        guidance_scale=range(1, 6),
        negative_prompts=list("54321"),
    )
    assert len(images.sharding.device_set) == count
    np.save(f"{sys.argv[3]}/{count}.npy", images)
"""


@pytest.mark.long
def test_the_number_of_devices_makes_no_difference(repository, tmp_path):
    """Five samples: on 2 and 8 devices the batch is padded."""
    folders = [repository, repository / "tests" / "references", tmp_path]
    flags = "--xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-c", DEVICES, *map(str, folders)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    one, *more = (np.load(tmp_path / f"{count}.npy").astype(int) for count in (1, 2, 8))
    assert one.std() > 10
    for images in more:
        assert_same(images, one)


# Bad arguments ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"height": 9}, "height = 9: takes a multiple of 2"),
        ({"width": 0}, "width = 0: takes a multiple of 2"),
        ({"num_steps": 0}, "num_steps = 0: takes 1 to 1000"),
    ],
)
def test_impossible_settings_are_refused(pipeline, keys, options, message):
    with pytest.raises(UserError, match=message):
        pipeline(PROMPTS, key=keys, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "takes a key, or latents"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "2 keys for 3 prompts"),
        ({"latents": np.zeros((3, 4, 4, 3))}, r"latents of shape \(3, 4, 4, 3\)"),
        ({"latents": np.zeros((2, 4, 4, 4))}, r"latents of shape \(2, 4, 4, 4\)"),
        ({"latents": np.zeros((3, 4, 4, 4)), "height": 10}, "images of 10 x 8"),
        ({"key": jax.random.key(0), "guidance_scale": [1, 2]}, "guidance_scale of sha"),
        ({"key": jax.random.key(0), "guidance_scale": np.nan}, "guidance_scale of sha"),
        (
            {"key": jax.random.key(0), "negative_prompts": ["a"]},
            "1 negative prompts for 3 prompts",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPTS, **options)


def test_prompts_are_a_list(pipeline):
    for prompts in ("a cat", []):
        with pytest.raises(ValueError, match="takes a list of at least one prompt"):
            pipeline(prompts, key=jax.random.key(0))


def test_networks_that_do_not_fit_are_refused(tokenizer):
    parts = networks()
    inpainting = UNetConfig.from_json(parts.unet.config.to_json() | {"in_channels": 9})
    parts = Networks(parts.text_encoder, UNet2DCondition(inpainting), parts.vae)
    with pytest.raises(UserError, match="unet/config.json: in_channels = 9"):
        StableDiffusion(parts, {}, tokenizer, SOLVER)


# Files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a saved pipeline, to be changed."""
    return shutil.copytree(saved, tmp_path / "model")


def assert_equal_params(one, other):
    chex.assert_trees_all_equal(one.params, other.params)


def test_a_saved_pipeline_is_the_same(pipeline, saved):
    again = StableDiffusion.from_pretrained(saved)
    assert again.networks == pipeline.networks
    assert again.solver == pipeline.solver
    assert_equal_params(again, pipeline)
    texts = ["a cat", ""]
    assert again.tokenizer(texts).input_ids == pipeline.tokenizer(texts).input_ids
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["tokenizer"] == ["transformers", "CLIPTokenizer"]


def test_weights_can_be_saved_smaller(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, dtype=np.float16)
    weights = hub.read_weights(hub.find_weights(tmp_path / "text_encoder" / "model"))
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float16)}
    again = StableDiffusion.from_pretrained(tmp_path)
    jax.tree.map(
        lambda half, full: np.testing.assert_allclose(half, full, 1e-3, 1e-4),
        again.params,
        pipeline.params,
    )


def test_the_other_sampler(folder, keys):
    pipeline = StableDiffusion.from_pretrained(folder, solver="ddim")
    assert isinstance(pipeline.solver, DDIM)
    assert pipeline.solver.prediction_type == "v_prediction"
    assert images(pipeline, PROMPTS, key=keys).std() > 5
    with pytest.raises(UserError, match="solver = 'euler': takes auto or dpmsolver"):
        StableDiffusion.from_pretrained(folder, solver="euler")


def as_pickle(path, weights, write=lambda value: value.tobytes()):
    """A `.bin` file as torch.save writes it, of float32 weights, by hand."""
    lines = [b"\x80\x02}"]
    for i, (name, value) in enumerate(weights.items()):
        strides = [s // value.itemsize for s in np.empty(value.shape, "f4").strides]

        def text(string):
            data = string.encode()
            return b"X" + len(data).to_bytes(4, "little") + data

        def numbers(values):
            return (
                b"(" + b"".join(b"J" + v.to_bytes(4, "little") for v in values) + b"t"
            )

        lines.append(text(name))
        lines.append(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        lines.append(text("storage") + b"ctorch\nFloatStorage\n" + text(str(i)))
        lines.append(text("cpu") + b"J" + value.size.to_bytes(4, "little") + b"tQ")
        lines.append(b"K\x00" + numbers(value.shape) + numbers(strides))
        lines.append(b"\x89NtR" + b"s")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"".join(lines) + b".")
        for i, value in enumerate(weights.values()):
            archive.writestr(f"archive/data/{i}", write(value))


def to_bin(file):
    """Replaces a safetensors file by a `.bin` of the name that torch gives it."""
    name = file.name.replace("model", "pytorch_model", file.name == "model.safetensors")
    as_pickle(file.with_name(name).with_suffix(".bin"), hub.read_weights(file))
    file.unlink()


def test_bin_files_are_read(pipeline, folder):
    for file in list(folder.glob("*/*.safetensors")):
        to_bin(file)
    assert (folder / "text_encoder" / "pytorch_model.bin").is_file()
    assert (folder / "vae" / "diffusion_pytorch_model.bin").is_file()
    assert_equal_params(StableDiffusion.from_pretrained(folder), pipeline)


def test_sharded_and_older_files_are_read(pipeline, folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = hub.read_weights(file)
    file.unlink()
    index = {}
    for i, (name, value) in enumerate(weights.items()):
        shard = f"diffusion_pytorch_model-0000{i % 3 + 1}-of-00003.safetensors"
        index.setdefault(shard, {})[name] = value
    for shard, part in index.items():
        hub.write_weights(folder / "unet" / shard, part)
    mapping = {name: shard for shard, part in index.items() for name in part}
    (folder / "unet" / f"{file.name}.index.json").write_text(
        json.dumps({"weight_map": mapping})
    )
    file = folder / "text_encoder" / "model.safetensors"
    weights = hub.read_weights(file)
    weights["text_model.embeddings.position_ids"] = np.arange(LENGTH)[None]
    hub.write_weights(file, weights)
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = hub.read_weights(file)
    for today, before in (("to_q", "query"), ("to_out.0", "proj_attn")):
        weights = {
            name.replace(f"attentions.0.{today}.", f"attentions.0.{before}."): value
            for name, value in weights.items()
        }
    hub.write_weights(file, weights)
    assert_equal_params(StableDiffusion.from_pretrained(folder), pipeline)


def repository_of(folder, monkeypatch, tmp_path):
    """Makes `folder` the repository owner/model; returns what is downloaded of it."""
    cache, downloaded = tmp_path / "cache", []

    def snapshot_download(name, *, revision, allow_patterns, repo_type):
        assert (name, revision, repo_type) == ("owner/model", None, "model")
        for file in folder.rglob("*"):
            path = file.relative_to(folder)
            wanted = any(fnmatch.fnmatch(str(path), p) for p in allow_patterns)
            if file.is_file() and wanted and not (cache / path).exists():
                (cache / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, cache / path)
                downloaded.append(str(path))
        return cache

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return downloaded


def test_a_repository_is_loaded_without_what_is_not_needed(
    pipeline, folder, monkeypatch, tmp_path
):
    needed = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    for extra in (
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "safety_checker/model.safetensors",
        "README.md",
    ):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not to be read")
    downloaded = repository_of(folder, monkeypatch, tmp_path)
    assert_equal_params(StableDiffusion.from_pretrained("owner/model"), pipeline)
    assert sorted(downloaded) == sorted(needed)


def test_a_repository_of_bin_files_is_loaded(pipeline, folder, monkeypatch, tmp_path):
    for file in list(folder.glob("*/*.safetensors")):
        to_bin(file)
    repository_of(folder, monkeypatch, tmp_path)
    assert_equal_params(StableDiffusion.from_pretrained("owner/model"), pipeline)


@pytest.mark.parametrize(
    "file, message",
    [
        ("model_index.json", "model_index.json: missing"),
        ("unet/config.json", "unet/config.json: missing"),
        ("vae/diffusion_pytorch_model.safetensors", "vae: holds none of diffusion_pyt"),
        ("text_encoder/model.safetensors", "text_encoder: holds none of model.safet"),
        ("scheduler/scheduler_config.json", "scheduler_config.json: missing"),
        ("tokenizer/*", "tokenizer: holds no tokenizer.json or vocab.json and"),
    ],
)
def test_a_missing_file_is_named(folder, file, message):
    for path in folder.glob(file):
        path.unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        StableDiffusion.from_pretrained(folder)


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(path, change):
    weights = hub.read_weights(path)
    change(weights)
    hub.write_weights(path, weights)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda folder: change_json(
                folder / "model_index.json", _class_name="FluxPipeline"
            ),
            "model_index.json: FluxPipeline is no Stable Diffusion pipeline",
        ),
        (
            lambda folder: change_json(
                folder / "model_index.json", tokenizer=["x", "os"]
            ),
            "model_index.json: tokenizer os is unknown",
        ),
        (
            lambda folder: change_json(
                folder / "unet" / "config.json", num_class_embeds=1000
            ),
            "unet/config.json: num_class_embeds = 1000",
        ),
        (
            lambda folder: change_json(
                folder / "unet" / "config.json", layers_per_block=2
            ),
            "unet/diffusion_pytorch_model.safetensors has no weights",
        ),
        (
            lambda folder: change_json(
                folder / "scheduler" / "scheduler_config.json", prediction_type="flow"
            ),
            "scheduler_config.json: prediction_type = 'flow'",
        ),
        (
            lambda folder: change_weights(
                folder / "vae" / "diffusion_pytorch_model.safetensors",
                lambda weights: weights.pop("decoder.conv_in.bias"),
            ),
            "vae/diffusion_pytorch_model.safetensors has no weights decoder.conv_in.b",
        ),
        (
            lambda folder: change_weights(
                folder / "text_encoder" / "model.safetensors",
                lambda weights: weights.update(
                    {"text_model.final_layer_norm.bias": np.zeros(9, np.float32)}
                ),
            ),
            "model.safetensors: final_layer_norm.bias has shape (9,)",
        ),
        (
            lambda folder: change_weights(
                folder / "text_encoder" / "model.safetensors",
                lambda weights: weights.update(extra=np.zeros(9, np.float32)),
            ),
            "text_encoder/model.safetensors has unknown weights extra",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(folder, change, message):
    change(folder)
    with pytest.raises(UserError, match=re.escape(message)):
        StableDiffusion.from_pretrained(folder)


def test_a_bin_file_that_would_run_code_is_refused(folder, tmp_path):
    target = tmp_path / "made_by_attack"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(target),)

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    with zipfile.ZipFile(file.with_suffix(".bin"), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": Attack()}))
    file.unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.bin: refused"):
        StableDiffusion.from_pretrained(folder)
    assert not target.exists()


def test_a_model_that_is_nowhere_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        StableDiffusion.from_pretrained(tmp_path / "nowhere")
