"""Stable Diffusion's networks, and what sampling with them compiles."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion import blocks, lowering
from gptfl_jax.generators.diffusion.lowering import Lowered
from gptfl_jax.generators.diffusion.solvers import Solver
from gptfl_jax.generators.diffusion.unet import (
    UNet2DCondition,
    guidance_embedding,
    project_context,
)
from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.pictures.clip_text import CLIPTextModel


@dataclasses.dataclass(frozen=True)
class Networks:
    """The three networks of a pipeline; `UNet2DCondition` and the others, unbound."""

    text_encoder: CLIPTextModel
    unet: UNet2DCondition
    vae: AutoencoderKL

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
                ((1, 1, config.cross_attention_dim), jnp.float32),
                None,
                config.time_cond_proj_dim
                and ((1, config.time_cond_proj_dim), jnp.float32),
            ),
            "vae": shape(
                self.vae,
                ((1, pixels, pixels, self.vae.config.in_channels), jnp.float32),
            ),
        }

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        """Of the latents of a picture of so many pixels; None: the model's own size.

        Raises:
            UserError: no multiple of the autoencoder's factor.
        """
        factor, config = self.vae.config.factor, self.unet.config
        sides = []
        own = blocks.per_level(config.sample_size, 2)
        for name, value, default in (
            ("height", height, own[0]),
            ("width", width, own[1]),
        ):
            value = default * factor if value is None else value
            if value <= 0 or value % factor:
                raise UserError(
                    f"{name} = {value}: takes a multiple of {factor}, by which the "
                    "model's autoencoder shrinks images"
                )
            sides.append(value // factor)
        return (*sides, config.in_channels)

    # What `gptfl_jax.generators.diffusion.sampling` asks for.

    def encode(self, params: Any, tokens: Array) -> Array:
        return self.text_encoder.apply({"params": params["text_encoder"]}, tokens)

    def condition(
        self, params: Any, encoded: Array, guidance: Array
    ) -> tuple[Array, dict[str, Any], Array | None]:
        context = project_context(params["unet"], encoded, self.unet.dtype)
        if not self.takes_guidance():
            return encoded, context, None
        features = self.unet.config.time_cond_proj_dim
        return encoded, context, guidance_embedding(guidance, features)

    def takes_guidance(self) -> bool:
        return self.unet.config.time_cond_proj_dim is not None

    def predict(
        self, params: Any, latents: Array, timesteps: Array, conditions: Any
    ) -> Array:
        context, projected, guidance = conditions
        variables = {"params": params, "context": projected}
        return self.unet.apply(
            variables, latents, timesteps, context, time_condition=guidance
        )

    def decoder(self, params: Any) -> Any:
        return params["vae"]

    def decode(self, params: Any, latents: Array) -> Array:
        latents = latents / self.vae.config.scaling_factor
        images = self.vae.apply({"params": params}, latents, method="decode")
        images = jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)
        return jnp.round(images * 255).astype(jnp.uint8)

    def decoded_at_once(self, shape: Sequence[int]) -> int:
        height, width = (size * self.vae.config.factor for size in shape[:2])
        return self.vae.config.pictures_at_once(height, width)


def lower(
    networks: Networks,
    shape: Sequence[int],
    mesh: Mesh,
    *,
    batch: int,
    num_steps: int,
    guided: bool,
    solver: Solver,
    counted_only: bool = False,
) -> Lowered:
    """The programs that sample a batch, as `lowering.lower` takes its arguments."""
    tokens = networks.text_encoder.config.max_position_embeddings
    return lowering.lower(
        networks,
        shape,
        mesh,
        batch=batch,
        num_steps=num_steps,
        guided=guided and not networks.takes_guidance(),
        tokens=tokens,
        solver=solver,
        counted_only=counted_only,
    )
