"""AudioLDM's networks, as the loop of diffusion takes them."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.unet import UNet2DCondition
from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.sounds.clap_text import CLAPTextModel
from gptfl_jax.generators.speech import hifigan
from gptfl_jax.generators.speech.hifigan import HifiGan

# A day: a longer sound is a slip of the keyboard, and no memory holds its latents.
_LONGEST_S = 86_400


@dataclasses.dataclass(frozen=True)
class Networks:
    """The four networks of a pipeline, unbound.

    The UNet denoises latents of log-mel spectrograms, [frames, mel bands, 1], and is
    conditioned by the prompt's embedding beside the time.
    """

    text_encoder: CLAPTextModel
    unet: UNet2DCondition
    vae: AutoencoderKL
    vocoder: HifiGan

    def check(self) -> None:
        """Refuses networks that do not fit together.

        Raises:
            UserError: they do not.
        """
        unet, vae = self.unet.config, self.vae.config
        embedding = self.text_encoder.config.projection_dim
        classes = unet.projection_class_embeddings_input_dim
        for file, name, value, expected in (
            ("unet", "in_channels", unet.in_channels, vae.latent_channels),
            ("unet", "out_channels", unet.out_channels, vae.latent_channels),
            ("unet", "projection_class_embeddings_input_dim", classes, embedding),
            ("unet", "time_cond_proj_dim", unet.time_cond_proj_dim, None),
            ("vae", "in_channels", vae.in_channels, 1),
            ("vae", "out_channels", vae.out_channels, 1),
        ):
            if value != expected:
                raise UserError(
                    f"{file}/config.json: {name} = {value}, but the networks beside it "
                    f"need {expected}: only AudioLDM of the first version is supported"
                )
        bands = self.vocoder.config.model_in_dim
        if bands % vae.factor:
            raise UserError(
                f"vocoder/config.json: model_in_dim = {bands}, but the autoencoder "
                f"beside it makes multiples of {vae.factor}: download the model again"
            )

    def shapes(self) -> dict[str, Any]:
        """Parameters of each network, as `jax.ShapeDtypeStruct`s."""
        config, levels = self.unet.config, len(self.unet.config.block_out_channels)
        side, pixels = 2 ** (levels - 1), self.vae.config.factor
        key = jax.random.key(0)

        def shape(network, *inputs):
            inputs = [each and jax.ShapeDtypeStruct(*each) for each in inputs]
            return jax.eval_shape(network.init, key, *inputs)["params"]

        return {
            "text_encoder": shape(self.text_encoder, ((1, 1), jnp.int32)),
            "unet": shape(
                self.unet,
                ((1, side, side, config.in_channels), jnp.float32),
                ((1,), jnp.int32),
                None,
                ((1, config.projection_class_embeddings_input_dim), jnp.float32),
            ),
            "vae": shape(self.vae, ((1, pixels, pixels, 1), jnp.float32)),
            "vocoder": hifigan.shapes(self.vocoder),
        }

    def num_samples(self, duration_s: float) -> int:
        """Samples of a sound."""
        return int(duration_s * self.vocoder.config.sampling_rate)

    def latent_shape(self, duration_s: float) -> tuple[int, int, int]:
        """Of the latents of a sound, whose frames are filled up to the next latent.

        Raises:
            UserError: the sound is shorter than a latent, or longer than a day.
        """
        config, factor = self.vocoder.config, self.vae.config.factor
        frame_s = math.prod(config.upsample_rates) / config.sampling_rate
        if not factor * frame_s <= duration_s <= _LONGEST_S:
            raise UserError(
                f"duration_s = {duration_s:g}: takes {factor * frame_s:g} to "
                f"{_LONGEST_S:,} seconds"
            )
        # Rounded, as 5.12 s are 512 frames of 10 ms, but not by floating point.
        frames = math.ceil(round(duration_s / frame_s, 6))
        bands = config.model_in_dim // factor
        return math.ceil(frames / factor), bands, self.unet.config.in_channels

    # What `gptfl_jax.generators.diffusion.sampling` asks for.

    def encode(self, params: Any, tokens: Array) -> Array:
        return self.text_encoder.apply({"params": params["text_encoder"]}, tokens)

    def condition(self, params: Any, encoded: Array, guidance: Array) -> Array:
        return encoded

    def takes_guidance(self) -> bool:
        return False

    def predict(
        self, params: Any, latents: Array, timesteps: Array, conditions: Array
    ) -> Array:
        return self.unet.apply({"params": params}, latents, timesteps, None, conditions)

    def decoder(self, params: Any) -> Any:
        return {name: params[name] for name in ("vae", "vocoder")}

    def decode(self, params: Any, latents: Array) -> Array:
        latents = latents / self.vae.config.scaling_factor
        mels = self.vae.apply({"params": params["vae"]}, latents, method="decode")
        return self.vocoder.apply(params["vocoder"], mels[:, :, :, 0])

    def decoded_at_once(self, shape: Sequence[int]) -> int:
        frames, bands = (size * self.vae.config.factor for size in shape[:2])
        return self.vae.config.pictures_at_once(frames, bands)
