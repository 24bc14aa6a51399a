"""Autoencoders and denoisers of any kind in small: sizes, and what they minimise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from gptfl_jax.generators.diffusion.unet import UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig


def vae_config(
    settings: ConfigDict, sample_size: int, scaling_factor: float, **others: Any
) -> VAEConfig:
    """An autoencoder without attention, in the sizes of a config's section."""
    channels = tuple(settings.vae_channels)
    return VAEConfig(
        sample_size=sample_size,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        latent_channels=settings.latent_channels,
        norm_num_groups=4,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
        **others,
    )


def unet_config(settings: ConfigDict, sample_size: int, **others: Any) -> UNetConfig:
    """A denoiser with attention only at the coarsest resolution, likewise."""
    channels = tuple(settings.unet_channels)
    down = ("DownBlock2D",) * (len(channels) - 1) + ("CrossAttnDownBlock2D",)
    return UNetConfig(
        sample_size=sample_size,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        down_block_types=down,
        mid_block_type=None,
        up_block_types=tuple(t.replace("Down", "Up") for t in down[::-1]),
        block_out_channels=channels,
        layers_per_block=1,
        attention_head_dim=4,
        use_linear_projection=True,
        norm_num_groups=8,
        **others,
    )


def autoencoder_loss(
    network: AutoencoderKL,
    kl_weight: float,
    params: Any,
    inputs: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Absolute and squared error of the reconstruction, and the KL of the latents."""
    mean, log_variance = network.apply({"params": params}, inputs, method="encode")
    noise = jax.random.normal(key, mean.shape)
    latents = mean + jnp.exp(log_variance / 2) * noise
    error = network.apply({"params": params}, latents, method="decode") - inputs
    kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).mean()
    return jnp.abs(error).mean() + (error**2).mean() + kl_weight * kl


def denoising_loss(
    predict: Callable[
        [Float[Array, "batch height width channels"], Int[Array, " batch"]],
        Float[Array, "batch height width channels"],
    ],
    alphas_cumprod: Float[np.ndarray, " levels"],
    latents: Float[Array, "batch height width channels"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Squared error of the velocity alpha noise - sigma latents (arXiv 2202.00512).

    Args:
        predict: noisy latents and their levels -> the velocity.
        alphas_cumprod: the share of the latents' power at each level.
        latents: of unit variance.
        key: of the levels and the noise.
    """
    level_key, noise_key = jax.random.split(key)
    levels = jax.random.randint(level_key, latents.shape[:1], 0, len(alphas_cumprod))
    share = jnp.asarray(alphas_cumprod, jnp.float32)[levels][:, None, None, None]
    alpha, sigma = jnp.sqrt(share), jnp.sqrt(1 - share)
    noise = jax.random.normal(noise_key, latents.shape)
    velocity = predict(alpha * latents + sigma * noise, levels)
    return ((velocity - (alpha * noise - sigma * latents)) ** 2).mean()
