"""Training of the small drums on strokes made by rule and on a few free recordings.

An AudioLDM in miniature: an autoencoder (AutoencoderKL) learns 4x8 latents of log-mel
spectrograms of a second, then a text encoder and a UNet learn together to denoise them,
by v-prediction (arXiv 2202.00512) with a share of empty prompts for classifier-free
guidance (arXiv 2207.12598). A HiFi-GAN vocoder learns to make waveforms of spectrograms
by spectra alone, then of what the autoencoder leaves of them, against discriminators
too (arXiv 2010.05646). Prompts name the class, and what a stroke is among those of its
class: bright or dark, short or long, acoustic or electronic.

Written to the workdir: `model/` in the format of diffusers and float16; `samples.png`
(corpus above model), `samples/*.wav`, `metrics.jsonl` and checkpoints of the four
phases, `quality.json`.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gptfl_jax import artifacts, convolution, planning
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from gptfl_jax.progress import say
from train import diffusion, phases, vocoders
from train.drums import networks, prompts, quality
from train.drums.corpus import FRAMES, Corpus, load_corpus, spectrograms
from train.drums.spectrogram import NUM_MELS, log_mel
from train.drums.synthesis import LENGTH

_SECTION = "text_to_sound"
# Streams of random draws: fold_in(seed, stream).
_VAE_INIT, _VAE_DATA, _UNET_INIT, _UNET_DATA, _VOCODER_INIT, _VOCODER_DATA = range(6)
_RIVAL_INIT, _RIVAL_DATA, _SAMPLES, _READER = range(6, 10)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the strokes, trains the phases, writes the model and measures it."""
    settings = config.text_to_sound
    mesh = phases.data_mesh(_SECTION, settings)
    with artifacts.lock(workdir):
        artifacts.write_run_record(workdir, config)
        stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
        started = time.perf_counter()
        corpus = load_corpus(workdir, config)
        mels = spectrograms(corpus.waves)
        tokenizer = networks.make_tokenizer()
        parts = networks.make_networks(settings, tokenizer)
        train = phases.trainer(config, _SECTION, workdir, mesh)
        vae = _train_vae(train, settings, stream, parts.vae, mels)
        latents, taught = _encode(parts.vae, vae, mels)
        scaling_factor = float(1 / latents.std())
        parts = networks.make_networks(settings, tokenizer, scaling_factor)
        table = networks.token_table(tokenizer)
        data = latents * scaling_factor, table, corpus.attributes
        params = _train_unet(train, settings, stream, parts, data)
        vocoder = _train_vocoder(
            train, settings, stream, parts.vocoder, corpus, mels, taught
        )
        pipeline = AudioLDM(
            parts,
            {**params, "vae": vae, "vocoder": vocoder},
            tokenizer,
            networks.make_solver(),
        )
        folder = workdir / "model"
        pipeline.save_pretrained(folder, dtype=jnp.float16)
        # The files of the tokenizer that versions before 5 of transformers read.
        tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
        seconds = time.perf_counter() - started
        say(f"model written to {folder} after {seconds:.0f} s")
        quality.measure(workdir, settings, (stream(_SAMPLES), stream(_READER)), corpus)


def plan(config: ConfigDict) -> planning.Plan:
    """What a run takes, with as many recordings as Sonic Pi has."""
    settings = config.text_to_sound
    mesh = phases.data_mesh(_SECTION, settings)
    stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
    classes = len(prompts.LABELS.classes)
    recorded = settings.variations * (45 if settings.recordings else 0)
    clips = settings.strokes * classes + recorded
    corpus = Corpus(
        np.broadcast_to(np.zeros((), np.int16), (clips, LENGTH)),
        np.zeros((clips, 4), np.int32),
    )
    mels = np.broadcast_to(np.float32(0), (clips, FRAMES, NUM_MELS))
    tokenizer = networks.make_tokenizer()
    parts = networks.make_networks(settings, tokenizer)
    train = phases.Rehearsal(_SECTION, settings, mesh)
    _train_vae(train, settings, stream, parts.vae, mels)
    latents = np.broadcast_to(np.float32(0), (clips, *_latent_shape(parts)))
    data = latents, networks.token_table(tokenizer), corpus.attributes
    _train_unet(train, settings, stream, parts, data)
    _train_vocoder(train, settings, stream, parts.vocoder, corpus, mels, mels)
    return train.plan([("data", f"about {clips:,} strokes of {classes} classes")])


def _latent_shape(parts):
    config = parts.vae.config
    factor = config.factor
    return FRAMES // factor, NUM_MELS // factor, config.latent_channels


def _train_vae(train, settings, stream, vae, mels):
    """The autoencoder's parameters."""
    blank = jnp.zeros((1, FRAMES, NUM_MELS, 1))

    def batch(mels, key):
        rows = jax.random.randint(key, (settings.batch_size,), 0, len(mels))
        return mels[rows][..., None]

    return train(
        "vae",
        params=jax.jit(vae.init)(stream(_VAE_INIT), blank)["params"],
        loss=functools.partial(diffusion.autoencoder_loss, vae, settings.kl_weight),
        data=mels,
        batch=batch,
        key=stream(_VAE_DATA),
    )


def _encode(vae, params, mels):
    """Mean latents of spectrograms, and what the autoencoder makes of these."""

    @jax.jit
    def encode(mels):
        def apply(inputs, method):
            return vae.apply({"params": params}, inputs, method=method)

        with convolution.outside_loops():
            mean, _ = apply(mels[..., None], "encode")
            return mean, apply(mean, "decode")[..., 0]

    size = 200
    parts = [
        jax.device_get(encode(mels[start : start + size]))
        for start in range(0, len(mels), size)
    ]
    latents, decoded = zip(*parts, strict=True)
    return np.concatenate(latents), np.concatenate(decoded)


def _train_unet(train, settings, stream, parts, data):
    """The parameters of the text encoder and the UNet.

    Args:
        data: scaled latents, the table of tokens, and each stroke's attributes.
    """
    text_key, unet_key = jax.random.split(stream(_UNET_INIT))
    tokens = jnp.zeros((1, networks.PROMPT_TOKENS), jnp.int32)
    init = {
        "text_encoder": parts.text_encoder.init(text_key, tokens)["params"],
        "unet": jax.jit(parts.unet.init)(
            unet_key,
            jnp.zeros((1, *_latent_shape(parts))),
            jnp.zeros((1,), jnp.int32),
            None,
            jnp.zeros((1, settings.text_features)),
        )["params"],
    }

    def batch(data, key):
        scaled, table, attributes = data
        row_key, said_key, empty_key = jax.random.split(key, 3)
        rows = jax.random.randint(row_key, (settings.batch_size,), 0, len(scaled))
        said = prompts.prompt_index(prompts.mention(said_key, attributes[rows]))
        empty = jax.random.bernoulli(empty_key, settings.empty_prompts, rows.shape)
        return scaled[rows], table[jnp.where(empty, len(table) - 1, said)]

    alphas_cumprod = networks.make_solver().alphas_cumprod()

    def loss(params, examples, key):
        latents, tokens = examples
        condition = parts.encode(params, tokens)

        def predict(noisy, levels):
            return parts.predict(params["unet"], noisy, levels, condition)

        return diffusion.denoising_loss(predict, alphas_cumprod, latents, key)

    return train(
        "unet", params=init, loss=loss, data=data, batch=batch, key=stream(_UNET_DATA)
    )


def _train_vocoder(train, settings, stream, vocoder, corpus, mels, taught):
    """The vocoder's variables."""
    streams = _VOCODER_INIT, _VOCODER_DATA, _RIVAL_INIT, _RIVAL_DATA
    frames = np.full(len(mels), FRAMES, np.int32)
    return vocoders.train_vocoder(
        train,
        settings,
        vocoders.Streams(*map(stream, streams)),
        vocoder,
        log_mel,
        vocoders.Clips(mels, corpus.waves, frames),
        taught,
    )
