"""Training of the small text-to-image generator of digits from rendered glyphs.

A Stable Diffusion in miniature: an autoencoder (AutoencoderKL) learns 8x8 latents of
32x32 pictures, then a text encoder and a UNet learn together to denoise them, by
v-prediction (arXiv 2202.00512) with a share of empty prompts for classifier-free
guidance (arXiv 2207.12598). The pictures are rendered from fonts and pen paths
(`drawing.py`); no data set of digits is read for training.

Written to the workdir: `model/` in diffusers format and float16, `autoencoder.png`,
`samples.png`, `metrics.jsonl` and checkpoints of both phases, `quality.json`.
"""

import functools
import io
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from gptfl_jax import artifacts, convolution, planning
from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.progress import say
from train import phases
from train.glyphs import drawing, losses, quality, shapes
from train.glyphs.networks import (
    PROMPT_TOKENS,
    make_networks,
    make_solver,
    prompt_tokenizer,
    token_table,
)

# Streams of random draws: fold_in(seed, stream).
_VAE_INIT, _VAE_DATA, _PICTURES, _UNET_INIT, _UNET_DATA, _SHEET, _TEST = range(7)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Renders, trains both phases, writes the model and measures it."""
    settings = config.text_to_image
    mesh = phases.data_mesh("text_to_image", settings)
    with artifacts.lock(workdir):
        artifacts.write_run_record(workdir, config)
        seed = jax.random.key(config.seed)
        stream = functools.partial(jax.random.fold_in, seed)
        atlas = _load_atlas(workdir, config)
        tokenizer = prompt_tokenizer()
        networks = make_networks(settings, tokenizer)
        train = phases.trainer(config, "text_to_image", workdir, mesh)
        started = time.perf_counter()

        vae_params = _train_vae(train, settings, stream, networks, atlas)
        _save_reconstructions(workdir, stream(_SHEET), atlas, networks.vae, vae_params)

        latents, prompts = encode_pictures(
            stream(_PICTURES), atlas, networks.vae, vae_params, settings.pictures
        )
        scaling_factor = float(1 / latents.std())
        networks = make_networks(settings, tokenizer, scaling_factor)
        data = latents * scaling_factor, token_table(tokenizer), prompts
        params = _train_unet(train, settings, stream, networks, data)
        pipeline = StableDiffusion(
            networks, {**params, "vae": vae_params}, tokenizer, make_solver()
        )
        pipeline.save_pretrained(workdir / "model", dtype=jnp.float16)
        # The files of the tokenizer that versions before 5 of transformers read.
        tokenizer.backend_tokenizer.model.save(str(workdir / "model" / "tokenizer"))
        seconds = time.perf_counter() - started
        say(f"model written to {workdir / 'model'} after {seconds:.0f} s")
        quality.measure(
            workdir,
            StableDiffusion.from_pretrained(workdir / "model"),
            settings.test_samples,
            stream(_SHEET),
            stream(_TEST),
            num_steps=settings.test_steps,
            guidance_scale=settings.test_guidance_scale,
        )


def plan(config: ConfigDict) -> planning.Plan:
    """What a run takes.

    Raises:
        UserError: fonts are missing.
    """
    settings = config.text_to_image
    mesh = phases.data_mesh("text_to_image", settings)
    stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
    atlas = shapes.outline(tuple(settings.families), settings.pen_shapes_per_digit)
    tokenizer = prompt_tokenizer()
    networks = make_networks(settings, tokenizer)
    train = phases.Rehearsal("text_to_image", settings, mesh)
    _train_vae(train, settings, stream, networks, atlas)
    side, count = networks.unet.config.sample_size, settings.pictures
    latents = jax.ShapeDtypeStruct(
        (count, side, side, settings.latent_channels), jnp.float32
    )
    prompts = jax.ShapeDtypeStruct((count,), jnp.int32)
    data = latents, token_table(tokenizer), prompts
    _train_unet(train, settings, stream, networks, data)
    size = drawing.IMAGE_SIZE
    return train.plan(
        [
            (
                "data",
                f"about {atlas.digit.shape[0]:,} shapes of digits, drawn in {size} x "
                f"{size} pixels, {settings.batch_size} a step; {count:,} for the UNet",
            )
        ]
    )


def _train_vae(train, settings, stream, networks, atlas):
    """The autoencoder's parameters."""
    blank = jnp.zeros((1, drawing.IMAGE_SIZE, drawing.IMAGE_SIZE, 3))
    params = jax.jit(networks.vae.init)(stream(_VAE_INIT), blank)["params"]
    return train(
        "vae",
        params=params,
        loss=lambda params, pictures, key: losses.vae_loss(
            networks.vae, settings.kl_weight, params, pictures, key
        ),
        data=atlas,
        batch=lambda atlas, key: render(key, atlas, settings.batch_size)[0],
        key=stream(_VAE_DATA),
    )


def _train_unet(train, settings, stream, networks, data):
    """The parameters of the text encoder and the UNet.

    Args:
        data: scaled latents, the table of tokens, and each picture's prompt.
    """
    text_key, unet_key = jax.random.split(stream(_UNET_INIT))
    side = networks.unet.config.sample_size
    init = {
        "text_encoder": networks.text_encoder.init(
            text_key, jnp.zeros((1, PROMPT_TOKENS), jnp.int32)
        )["params"],
        "unet": jax.jit(networks.unet.init)(
            unet_key,
            jnp.zeros((1, side, side, settings.latent_channels)),
            jnp.zeros((1,), jnp.int32),
            jnp.zeros((1, PROMPT_TOKENS, settings.text_features)),
        )["params"],
    }

    def batch(data, key):
        scaled, table, described = data
        row_key, empty_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (settings.batch_size,), 0, len(scaled))
        empty = jax.random.bernoulli(empty_key, settings.empty_prompts, rows.shape)
        tokens = table[jnp.where(empty, len(table) - 1, described[rows])]
        return scaled[rows], tokens

    alphas_cumprod = make_solver().alphas_cumprod()
    return train(
        "unet",
        params=init,
        loss=lambda params, examples, key: losses.denoising_loss(
            networks, alphas_cumprod, params, *examples, key
        ),
        data=data,
        batch=batch,
        key=stream(_UNET_DATA),
    )


def _load_atlas(workdir: pathlib.Path, config: ConfigDict) -> shapes.Atlas:
    """The shapes, kept in the workdir so that a resumed run needs no fonts."""
    path = workdir / "atlas.npz"
    if not path.exists():
        settings = config.text_to_image
        atlas = shapes.build_atlas(
            tuple(settings.families), settings.pen_shapes_per_digit, config.seed
        )
        buffer = io.BytesIO()
        np.savez(buffer, **atlas._asdict())
        artifacts.write_bytes(path, buffer.getvalue())
    with np.load(path) as stored:
        return jax.tree.map(
            jnp.asarray, shapes.Atlas(*(stored[f] for f in shapes.Atlas._fields))
        )


def render(
    key: PRNGKeyArray, atlas: shapes.Atlas, count: int
) -> tuple[UInt8[Array, "count 32 32 3"], Int[Array, " count"]]:
    """`count` pictures and the indices of their prompts; i depends on the key and i."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(drawing.draw_described, (0, None))(keys, atlas)


def encode_pictures(
    key: PRNGKeyArray, atlas: shapes.Atlas, vae: AutoencoderKL, params: Any, count: int
) -> tuple[Float[np.ndarray, "count height width channels"], Int[np.ndarray, " count"]]:
    """Mean latents of `count` rendered pictures, and the indices of their prompts."""
    size = min(500, count)

    @jax.jit
    def encode(number):
        pictures, prompts = render(jax.random.fold_in(key, number), atlas, size)
        images = pictures.astype(jnp.float32) / 127.5 - 1
        with convolution.outside_loops():
            mean, _ = vae.apply({"params": params}, images, method="encode")
        return mean, prompts

    parts = [
        jax.device_get(encode(number))
        for number in tqdm(range(-(-count // size)), desc="latents", mininterval=5)
    ]
    latents, prompts = (np.concatenate(part)[:count] for part in zip(*parts))  # noqa: B905
    return latents, prompts


def _save_reconstructions(workdir, key, atlas, vae, params) -> None:
    """`autoencoder.png`: rows of pictures over their reconstructions."""
    pictures, _ = render(key, atlas, 64)
    decoded = jax.jit(vae.apply)({"params": params}, pictures / 127.5 - 1)
    decoded = jnp.round(jnp.clip(decoded * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
    pairs = np.stack(
        [np.reshape(x, (4, 16, *x.shape[1:])) for x in (pictures, decoded)], 1
    )
    quality.save_sheet(
        workdir / "autoencoder.png", pairs.reshape(128, *pictures.shape[1:]), 16
    )
