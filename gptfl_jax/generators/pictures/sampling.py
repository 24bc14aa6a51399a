"""How Stable Diffusion makes pictures of latents: its programs, and how they follow."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gptfl_jax import planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import blocks, solvers
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


class Start(NamedTuple):
    """What a batch starts from; every row belongs to a sample.

    `negative_tokens` is None without guidance, and one row when it is the same for all.
    One of `keys` and `latents` is None.
    """

    tokens: Any
    negative_tokens: Any
    guidance: Any
    keys: Any
    latents: Any


class State(NamedTuple):
    """The sampler's state between two steps."""

    sample: Float[Array, "batch height width channels"]
    clean: Float[Array, "batch height width channels"]


def sample(networks, shape, mesh, params, start, schedule):
    """Images, by the loop that suits the backend."""
    programs = programs_of(networks, shape, mesh, _specs(start))
    if jax.default_backend() != "cpu":
        return programs.whole(params, start, schedule)
    # Convolutions inside a loop of XLA's are 15 to 20 times slower on a CPU.
    context, state = programs.begin(params, start)
    for i in range(len(schedule.timesteps)):
        row = jax.tree.map(lambda column, i=i: column[i], schedule)
        state = programs.step(params["unet"], row, context, start.guidance, state)
    if mesh.size > 1:
        return programs.end(params["vae"], state.sample)
    config = networks.vae.config
    height, width = (size * config.factor for size in shape[:2])
    return placement.in_parts(
        lambda sample: programs.end(params["vae"], sample),
        state.sample,
        config.pictures_at_once(height, width),
    )


class _Functions(NamedTuple):
    whole: Callable
    begin: Callable
    step: Callable
    end: Callable


def functions(networks: Networks, shape: Sequence[int]) -> _Functions:
    """What sampling consists of; `shape` is that of a picture's latents."""

    def begin(params, start):
        def encode(tokens):
            variables = {"params": params["text_encoder"]}
            return networks.text_encoder.apply(variables, tokens)

        context = encode(start.tokens)
        if start.negative_tokens is not None:
            negative = encode(start.negative_tokens)
            negative = jnp.broadcast_to(negative, context.shape)
            context = jnp.concatenate([negative, context])
        projected = project_context(params["unet"], context, networks.unet.dtype)
        sample = start.latents
        if sample is None:
            sample = jax.vmap(lambda key: jax.random.normal(key, shape))(start.keys)
        return (context, projected), State(sample, jnp.zeros_like(sample))

    def step(params, row, context, guidance, state):
        sample, clean = state
        context, projected = context
        guided = len(context) > len(sample)
        inputs = jnp.concatenate([sample, sample]) if guided else sample
        timesteps = row.timesteps[None]
        variables = {"params": params, "context": projected}
        output = networks.unet.apply(variables, inputs, timesteps, context)
        output = output.astype(jnp.float32)
        if guided:
            negative, positive = jnp.split(output, 2)
            strength = guidance[:, None, None, None]
            output = negative + strength * (positive - negative)
        return State(*solvers.step(row, sample, output, clean))

    def end(params, sample):
        latents = sample / networks.vae.config.scaling_factor
        images = networks.vae.apply({"params": params}, latents, method="decode")
        images = jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)
        return jnp.round(images * 255).astype(jnp.uint8)

    def whole(params, start, schedule):
        context, state = begin(params, start)

        def body(state, row):
            return step(params["unet"], row, context, start.guidance, state), None

        state, _ = jax.lax.scan(body, state, schedule)
        return end(params["vae"], state.sample)

    return _Functions(whole, begin, step, end)


@functools.lru_cache(maxsize=32)
def programs_of(networks, shape, mesh, specs) -> _Functions:
    """The compiled parts of sampling, each split over the devices of `mesh`."""
    whole, begin, step, end = functions(networks, shape)

    def program(function, *in_specs, donate=()):
        return placement.compiled(function, mesh, in_specs, donate=donate)

    return _Functions(
        whole=program(whole, EVERYWHERE, specs, EVERYWHERE),
        begin=program(begin, EVERYWHERE, specs),
        step=program(step, EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT, donate=(4,)),
        end=program(end, EVERYWHERE, SPLIT),
    )


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
    start = Start(
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
    plain = functions(networks, tuple(shape))
    context, state = jax.eval_shape(plain.begin, params, start)
    context, state = planning.shapes((context, state), mesh, SPLIT)
    step = params["unet"], row, context, start.guidance, state
    compiled = programs_of(networks, tuple(shape), mesh, _specs(start))
    if jax.default_backend() == "cpu":
        config = networks.vae.config
        size = rows
        if mesh.size == 1:
            height, width = (side * config.factor for side in shape[:2])
            size = placement.part_size(rows, config.pictures_at_once(height, width))
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


def _specs(start: Start) -> Start:
    """How a batch lies on the devices."""
    specs = jax.tree.map(lambda _: SPLIT, start)
    if start.negative_tokens is not None and start.negative_tokens.shape[0] == 1:
        specs = specs._replace(negative_tokens=EVERYWHERE)
    return specs
