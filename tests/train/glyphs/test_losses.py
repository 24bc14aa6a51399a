"""The losses of the small text-to-image generator, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from train.glyphs import losses


def test_denoising_loss_of_a_perfect_prediction_is_zero():
    # A network that returns the true velocity, told apart by its inputs: at the last
    # level alpha is 0, so that the velocity is minus the latents.
    class Text:
        def apply(self, variables, tokens):
            return jnp.zeros((len(tokens), 1, 1))

    class Denoiser:
        def apply(self, variables, noisy, levels, context):
            return -variables["params"]

    networks = type("Networks", (), {"text_encoder": Text(), "unet": Denoiser()})()
    latents = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    params = {"text_encoder": {}, "unet": latents}
    tokens = jnp.zeros((3, 5), jnp.int32)
    arguments = (params, latents, tokens, jax.random.key(1))
    assert losses.denoising_loss(networks, np.zeros(1), *arguments) == 0
    # With noise as strong as the latents the error is the noise's and the rest's.
    half = losses.denoising_loss(networks, np.full(1, 0.5), *arguments)
    noise = jax.random.normal(jax.random.split(jax.random.key(1))[1], latents.shape)
    velocity = np.sqrt(0.5) * (noise - latents)
    np.testing.assert_allclose(half, ((velocity + latents) ** 2).mean(), rtol=1e-5)


def test_autoencoder_loss_adds_its_three_terms():
    class Autoencoder:
        def apply(self, variables, inputs, method):
            if method == "encode":
                mean = jnp.full((len(inputs), 1, 1, 1), 2.0)
                return mean, jnp.full_like(mean, jnp.log(0.25))
            return jnp.full((len(inputs), 32, 32, 3), 0.5)

    pictures = jnp.full((2, 32, 32, 3), 255, jnp.uint8)  # 1 in [-1, 1]
    loss = losses.vae_loss(Autoencoder(), 0.1, {}, pictures, jax.random.key(0))
    kl = 0.5 * (4 + 0.25 - 1 - np.log(0.25))
    np.testing.assert_allclose(loss, 0.5 + 0.25 + 0.1 * kl, rtol=1e-6)
