"""Training of the small text-to-image generator of digits from rendered glyphs.

A Stable Diffusion in miniature: an autoencoder (AutoencoderKL) learns 8x8 latents of
32x32 pictures, then a text encoder and a UNet learn together to denoise them, by
v-prediction (arXiv 2202.00512) with a share of empty prompts for classifier-free
guidance (arXiv 2207.12598). The pictures are rendered from fonts and pen paths
(`gptfl_jax.data.glyphs`); no data set of digits is read for training.

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
from PIL import Image
from tqdm import tqdm

from gptfl_jax import artifacts, convolution
from gptfl_jax.data import glyphs
from gptfl_jax.generators.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.solvers import DPMSolver
from gptfl_jax.generators.stable_diffusion import Networks, StableDiffusion
from gptfl_jax.generators.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.vae import AutoencoderKL, VAEConfig
from train import phases

PROMPT_TOKENS = 20  # the longest prompt has 16, with both ends 18

# Streams of random draws: fold_in(seed, stream).
_VAE_INIT, _VAE_DATA, _PICTURES, _UNET_INIT, _UNET_DATA, _SHEET, _TEST = range(7)


# --- Tokenizer ----------------------------------------------------------------------


def prompt_tokenizer() -> Any:
    """A `CLIPTokenizer` with all bytes, and a token for each word of our prompts."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    words = sorted(set(" ".join(glyphs.all_prompts()).replace(",", " ").split()))
    merges = []
    # Byte-pair merges that build each word from its first letter on. A pair merged
    # for an earlier word may change how a later one splits: start from that split.
    for word in words:
        pieces = _split(word, merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            vocabulary.append(pieces[0] + pieces[1])
            pieces = _split(word, merges)
    ends = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate([*vocabulary, *ends])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=PROMPT_TOKENS
    )


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces of a word after the merges, in order of their rank."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while pairs := [p for p in zip(pieces, pieces[1:]) if p in ranks]:  # noqa: B905
        pair = min(pairs, key=ranks.get)
        merged, i = [], 0
        while i < len(pieces):
            if tuple(pieces[i : i + 2]) == pair:
                merged.append("".join(pair))
                i += 2
            else:
                merged.append(pieces[i])
                i += 1
        pieces = merged
    return pieces


def token_table(tokenizer: Any) -> Int[np.ndarray, "prompts tokens"]:
    """Tokens of `glyphs.all_prompts()`, and of the empty prompt as the last row."""
    encoded = tokenizer(
        [*glyphs.all_prompts(), ""],
        padding="max_length",
        max_length=PROMPT_TOKENS,
        truncation=True,
        return_tensors="np",
    )
    return encoded["input_ids"].astype(np.int32)


# --- Models -------------------------------------------------------------------------


def make_networks(
    settings: ConfigDict, tokenizer: Any, scaling_factor: float = 1.0
) -> Networks:
    """The three networks in the sizes of the config's section `text_to_image`."""
    vae_channels = tuple(settings.vae_channels)
    unet_channels = tuple(settings.unet_channels)
    levels = len(unet_channels)
    # Attention only at the coarsest resolution: prompts decide the whole digit.
    down = ("DownBlock2D",) * (levels - 1) + ("CrossAttnDownBlock2D",)
    vae_config = VAEConfig(
        sample_size=glyphs.IMAGE_SIZE,
        down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
        block_out_channels=vae_channels,
        latent_channels=settings.latent_channels,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
    )
    return Networks(
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=settings.text_features,
                intermediate_size=4 * settings.text_features,
                num_hidden_layers=settings.text_layers,
                num_attention_heads=4,
                max_position_embeddings=PROMPT_TOKENS,
                projection_dim=settings.text_features,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        unet=UNet2DCondition(
            UNetConfig(
                sample_size=glyphs.IMAGE_SIZE // vae_config.factor,
                in_channels=settings.latent_channels,
                out_channels=settings.latent_channels,
                down_block_types=down,
                mid_block_type=None,
                up_block_types=tuple(t.replace("Down", "Up") for t in down[::-1]),
                block_out_channels=unet_channels,
                layers_per_block=1,
                cross_attention_dim=settings.text_features,
                attention_head_dim=4,
                use_linear_projection=True,
                norm_num_groups=8,
            )
        ),
        vae=AutoencoderKL(vae_config),
    )


def make_solver() -> DPMSolver:
    """Stable Diffusion's noise levels, with v-prediction."""
    return DPMSolver(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,  # as in Stable Diffusion's files; without effect on "linspace"
    )


# --- Losses -------------------------------------------------------------------------


def vae_loss(
    network: AutoencoderKL,
    kl_weight: float,
    params: Any,
    pictures: UInt8[Array, "batch 32 32 3"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Absolute and squared error of the reconstruction, and the KL of the latents."""
    images = pictures.astype(jnp.float32) / 127.5 - 1
    mean, log_variance = network.apply({"params": params}, images, method="encode")
    noise = jax.random.normal(key, mean.shape)
    latents = mean + jnp.exp(log_variance / 2) * noise
    error = network.apply({"params": params}, latents, method="decode") - images
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).mean()
    return jnp.abs(error).mean() + (error**2).mean() + kl_weight * kl


def denoising_loss(
    networks: Networks,
    alphas_cumprod: Float[np.ndarray, " levels"],
    params: Any,
    latents: Float[Array, "batch height width channels"],
    tokens: Int[Array, "batch tokens"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Squared error of the velocity alpha noise - sigma latents (arXiv 2202.00512)."""
    level_key, noise_key = jax.random.split(key)
    levels = jax.random.randint(level_key, latents.shape[:1], 0, len(alphas_cumprod))
    share = jnp.asarray(alphas_cumprod, jnp.float32)[levels][:, None, None, None]
    alpha, sigma = jnp.sqrt(share), jnp.sqrt(1 - share)
    noise = jax.random.normal(noise_key, latents.shape)
    context = networks.text_encoder.apply({"params": params["text_encoder"]}, tokens)
    velocity = networks.unet.apply(
        {"params": params["unet"]}, alpha * latents + sigma * noise, levels, context
    )
    return ((velocity - (alpha * noise - sigma * latents)) ** 2).mean()


# --- Pictures ------------------------------------------------------------------------


def render(
    key: PRNGKeyArray, atlas: glyphs.Atlas, count: int
) -> tuple[UInt8[Array, "count 32 32 3"], Int[Array, " count"]]:
    """`count` pictures and the indices of their prompts; i depends on the key and i."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    return jax.vmap(glyphs.draw_described, (0, None))(keys, atlas)


def encode_pictures(
    key: PRNGKeyArray, atlas: glyphs.Atlas, vae: AutoencoderKL, params: Any, count: int
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


def save_sheet(
    path: pathlib.Path, pictures: UInt8[np.ndarray, "count 32 32 3"], columns: int
) -> None:
    """Pictures side by side in rows of `columns`, twice as large, as a PNG."""
    rows = len(pictures) // columns
    height, width = pictures.shape[1:3]
    sheet = pictures[: rows * columns].reshape(rows, columns, height, width, 3)
    sheet = sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    image = Image.fromarray(sheet).resize(
        (2 * columns * width, 2 * rows * height), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    artifacts.write_bytes(path, buffer.getvalue())


# --- Quality ------------------------------------------------------------------------


def sample_digits(
    pipeline: StableDiffusion,
    key: PRNGKeyArray,
    count: int,
    num_steps: int,
    guidance_scale: float,
    batch_size: int = 250,
) -> tuple[UInt8[np.ndarray, "count 32 32 3"], Int[np.ndarray, " count"]]:
    """Handwritten digits of all weights and slants, light on dark; their labels."""
    looks = [
        (weight, slant) for weight in glyphs.WEIGHTS[1:] for slant in glyphs.SLANTS[1:]
    ]
    labels = np.arange(count) % 10
    prompts = [
        glyphs.prompt(
            int(label),
            "handwritten",
            *looks[i // 10 % len(looks)],
            "dark",
            glyphs.FRAMINGS[1],
        )
        for i, label in enumerate(labels)
    ]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    pictures = [
        pipeline(
            prompts[start : start + batch_size],
            key=keys[start : start + batch_size],
            num_steps=num_steps,
            guidance_scale=guidance_scale,
        )
        for start in tqdm(range(0, count, batch_size), desc="samples", mininterval=5)
    ]
    return np.concatenate(pictures), labels


def digits_accuracy(
    pictures: UInt8[np.ndarray, "count 32 32 3"], labels: Int[np.ndarray, " count"]
) -> dict[str, float]:
    """How well a classifier fitted on pictures alone reads real handwriting.

    A support vector machine on 8x8 grey block means, tested on the 1,797 digits that
    come with scikit-learn: on all, and on its first 11 and last 3 writing sessions. The
    last 3 are the test writers of `configs/digits.py`: nothing is chosen by them.
    """
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    grey = pictures.astype(np.float32).mean(-1) / 255
    blocks = grey.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(len(grey), 64)
    classifier = SVC(C=5.0, gamma="scale").fit(blocks, labels)
    digits = load_digits()
    right = classifier.predict(digits.data / 16) == digits.target
    return {
        "accuracy": float(right.mean()),
        "accuracy_first_11_sessions": float(right[:1415].mean()),
        "accuracy_last_3_sessions": float(right[1415:].mean()),
    }


# --- Program ------------------------------------------------------------------------


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
        identity = phases.identity(config, "text_to_image")
        started = time.perf_counter()

        shapes = jnp.zeros((1, glyphs.IMAGE_SIZE, glyphs.IMAGE_SIZE, 3))
        vae_params = jax.jit(networks.vae.init)(stream(_VAE_INIT), shapes)["params"]
        vae_params = phases.train_phase(
            "vae",
            workdir,
            "text_to_image",
            settings,
            identity,
            mesh,
            vae_params,
            lambda params, pictures, key: vae_loss(
                networks.vae, settings.kl_weight, params, pictures, key
            ),
            atlas,
            lambda atlas, key: render(key, atlas, settings.batch_size)[0],
            stream(_VAE_DATA),
        )
        _save_reconstructions(workdir, stream(_SHEET), atlas, networks.vae, vae_params)

        latents, prompts = encode_pictures(
            stream(_PICTURES), atlas, networks.vae, vae_params, settings.pictures
        )
        scaling_factor = float(1 / latents.std())
        networks = make_networks(settings, tokenizer, scaling_factor)
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
        data = latents * scaling_factor, token_table(tokenizer), prompts

        def batch(data, key):
            scaled, table, described = data
            row_key, empty_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (settings.batch_size,), 0, len(scaled))
            empty = jax.random.bernoulli(empty_key, settings.empty_prompts, rows.shape)
            tokens = table[jnp.where(empty, len(table) - 1, described[rows])]
            return scaled[rows], tokens

        solver = make_solver()
        alphas_cumprod = solver.alphas_cumprod()
        params = phases.train_phase(
            "unet",
            workdir,
            "text_to_image",
            settings,
            identity,
            mesh,
            init,
            lambda params, examples, key: denoising_loss(
                networks, alphas_cumprod, params, *examples, key
            ),
            data,
            batch,
            stream(_UNET_DATA),
        )
        pipeline = StableDiffusion(
            networks, {**params, "vae": vae_params}, tokenizer, solver
        )
        pipeline.save_pretrained(workdir / "model", dtype=jnp.float16)
        # The files of the tokenizer that versions before 5 of transformers read.
        tokenizer.backend_tokenizer.model.save(str(workdir / "model" / "tokenizer"))
        seconds = time.perf_counter() - started
        print(f"model written to {workdir / 'model'} after {seconds:.0f} s", flush=True)
        _measure(workdir, settings, stream)


def _load_atlas(workdir: pathlib.Path, config: ConfigDict) -> glyphs.Atlas:
    """The shapes, kept in the workdir so that a resumed run needs no fonts."""
    path = workdir / "atlas.npz"
    if not path.exists():
        settings = config.text_to_image
        atlas = glyphs.build_atlas(
            tuple(settings.families), settings.pen_shapes_per_digit, config.seed
        )
        buffer = io.BytesIO()
        np.savez(buffer, **atlas._asdict())
        artifacts.write_bytes(path, buffer.getvalue())
    with np.load(path) as stored:
        return jax.tree.map(
            jnp.asarray, glyphs.Atlas(*(stored[f] for f in glyphs.Atlas._fields))
        )


def _save_reconstructions(workdir, key, atlas, vae, params) -> None:
    """`autoencoder.png`: rows of pictures over their reconstructions."""
    pictures, _ = render(key, atlas, 64)
    decoded = jax.jit(vae.apply)({"params": params}, pictures / 127.5 - 1)
    decoded = jnp.round(jnp.clip(decoded * 127.5 + 127.5, 0, 255)).astype(jnp.uint8)
    pairs = np.stack(
        [np.reshape(x, (4, 16, *x.shape[1:])) for x in (pictures, decoded)], 1
    )
    save_sheet(workdir / "autoencoder.png", pairs.reshape(128, *pictures.shape[1:]), 16)


def _measure(workdir, settings, stream) -> None:
    """`samples.png` and `quality.json` of the model as written, in float16."""
    pipeline = StableDiffusion.from_pretrained(workdir / "model")
    sampled = functools.partial(
        sample_digits,
        pipeline,
        num_steps=settings.test_steps,
        guidance_scale=settings.test_guidance_scale,
    )
    pictures, labels = sampled(stream(_SHEET), 180)
    order = np.argsort(labels, kind="stable")
    save_sheet(workdir / "samples.png", pictures[order], 18)
    if not settings.test_samples:
        return
    start = time.perf_counter()
    pictures, labels = sampled(stream(_TEST), settings.test_samples)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(pictures)
    quality = digits_accuracy(pictures, labels)
    quality |= {"samples": len(pictures), "milliseconds_per_sample": milliseconds}
    artifacts.write_json(workdir / "quality.json", quality)
    print(
        f"a classifier trained only on {len(pictures)} samples reads "
        f"{quality['accuracy']:.1%} of scikit-learn's digits; "
        f"{milliseconds:.1f} ms a sample"
    )
