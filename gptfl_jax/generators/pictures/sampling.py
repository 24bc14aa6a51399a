"""Stable Diffusion's networks, and what sampling with them compiles."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from gptfl_jax import planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import blocks, solvers
from gptfl_jax.generators.diffusion import sampling as diffusion
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, project_context
from gptfl_jax.generators.diffusion.vae import AutoencoderKL
from gptfl_jax.generators.pictures.clip_text import CLIPTextModel
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT


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
            inputs = [jax.ShapeDtypeStruct(*each) for each in inputs]
            return jax.eval_shape(network.init, key, *inputs)["params"]

        return {
            "text_encoder": shape(self.text_encoder, ((1, 1), jnp.int32)),
            "unet": shape(
                self.unet,
                ((1, side, side, config.in_channels), jnp.float32),
                ((1,), jnp.int32),
                ((1, 1, config.cross_attention_dim), jnp.float32),
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

    def condition(self, params: Any, encoded: Array) -> tuple[Array, dict[str, Any]]:
        return encoded, project_context(params["unet"], encoded, self.unet.dtype)

    def predict(
        self, params: Any, latents: Array, timesteps: Array, conditions: Any
    ) -> Array:
        context, projected = conditions
        variables = {"params": params, "context": projected}
        return self.unet.apply(variables, latents, timesteps, context)

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


class Lowered(NamedTuple):
    """What sampling compiles, for arrays of some shapes."""

    params: dict[str, Any]
    """Shapes, on the devices."""
    programs: dict[str, jax.stages.Lowered]
    """By what they do."""
    flops: dict[str, tuple[float, int]]
    """By what is done: floating-point operations, and how often for a batch."""


def lower(
    networks: Networks,
    shape: Sequence[int],
    mesh: Mesh,
    *,
    batch: int,
    num_steps: int,
    guided: bool,
) -> Lowered:
    """The programs that sample a batch, without their arrays.

    Args:
        shape: of a picture's latents, `networks.latent_shape()`.
        mesh: of `placement.mesh`.
        batch: pictures.
        num_steps: of the solver.
        guided: whether pictures are steered, away from one prompt for all.
    """
    rows = -(-batch // mesh.size) * mesh.size
    dtype = networks.unet.dtype
    params = planning.shapes(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), networks.shapes()),
        mesh,
    )
    tokens = networks.text_encoder.config.max_position_embeddings
    key = jax.eval_shape(jax.random.key, 0)
    start = diffusion.Start(
        tokens=_rows(mesh, SPLIT, rows, (tokens,), jnp.int32),
        negative_tokens=_rows(mesh, EVERYWHERE, 1, (tokens,), jnp.int32)
        if guided
        else None,
        guidance=_rows(mesh, SPLIT, rows, (), jnp.float32),
        keys=_rows(mesh, SPLIT, rows, key.shape, key.dtype),
        latents=None,
    )
    schedule = jax.eval_shape(lambda: solvers.DPMSolver().schedule(num_steps))
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), schedule)
    plain = diffusion.functions(networks, tuple(shape))
    context, state = jax.eval_shape(plain.begin, params, start)
    context, state = planning.shapes((context, state), mesh, SPLIT)
    step = params["unet"], row, context, start.guidance, state
    compiled = diffusion.programs_of(
        networks, tuple(shape), mesh, diffusion.specs(start)
    )
    if jax.default_backend() == "cpu":
        size = rows
        if mesh.size == 1:
            size = placement.part_size(rows, networks.decoded_at_once(shape))
        part = _rows(mesh, SPLIT, size, tuple(shape), state.sample.dtype)
        programs = {
            "texts": compiled.begin.lower(params, start),
            "a step": compiled.step.lower(*step),
            "decoding": compiled.end.lower(params["vae"], part),
        }
    else:
        programs = {"a batch": compiled.whole.lower(params, start, schedule)}
    flops = {
        "texts": (planning.flops(plain.begin, params, start), 1),
        "steps": (planning.flops(plain.step, *step), num_steps),
        "decoding": (planning.flops(plain.end, params["vae"], state.sample), 1),
    }
    return Lowered(params, programs, flops)


def _rows(mesh, spec, count, shape, dtype) -> jax.ShapeDtypeStruct:
    return planning.shapes(jax.ShapeDtypeStruct((count, *shape), dtype), mesh, spec)
