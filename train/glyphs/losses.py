"""What the autoencoder and the denoiser of digits minimise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.pictures.sampling import Networks


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
