"""What the autoencoder and the denoiser of digits minimise."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.pictures.sampling import Networks
from train import diffusion


def vae_loss(
    network: AutoencoderKL,
    kl_weight: float,
    params: Any,
    pictures: UInt8[Array, "batch 32 32 3"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """`diffusion.autoencoder_loss` of pictures."""
    images = pictures.astype(jnp.float32) / 127.5 - 1
    return diffusion.autoencoder_loss(network, kl_weight, params, images, key)


def denoising_loss(
    networks: Networks,
    alphas_cumprod: Float[np.ndarray, " levels"],
    params: Any,
    latents: Float[Array, "batch height width channels"],
    tokens: Int[Array, "batch tokens"],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """`diffusion.denoising_loss` of text encoder and UNet together."""
    context = networks.text_encoder.apply({"params": params["text_encoder"]}, tokens)

    def predict(noisy, levels):
        return networks.unet.apply({"params": params["unet"]}, noisy, levels, context)

    return diffusion.denoising_loss(predict, alphas_cumprod, latents, key)
