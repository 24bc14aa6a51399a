"""What autoencoders and denoisers minimise, whatever they make."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gptfl_jax.generators.diffusion.vae import AutoencoderKL


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
