"""Sampling without its arrays: what is compiled, and how much it computes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gptfl_jax import planning
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import sampling
from gptfl_jax.generators.diffusion.sampling import Networks
from gptfl_jax.generators.diffusion.solvers import Solver
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT


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
    tokens: int,
    solver: Solver,
    counted_only: bool = False,
) -> Lowered:
    """The programs that sample a batch, without their arrays.

    Args:
        networks: of the pipeline.
        shape: of a sample's latents, `networks.latent_shape()`.
        mesh: of `placement.mesh`.
        batch: samples.
        num_steps: of the solver.
        guided: whether samples are steered, away from one prompt for all.
        tokens: of a prompt, filled up.
        solver: of any noise levels, which change no program.
        counted_only: whether no programs are lowered, which takes half of the time.
    """
    rows = -(-batch // mesh.size) * mesh.size
    params = {}
    for name, tree in networks.shapes().items():
        dtype = getattr(networks, name).dtype
        params[name] = jax.tree.map(
            lambda x, dtype=dtype: jax.ShapeDtypeStruct(x.shape, dtype), tree
        )
    params = planning.shapes(params, mesh)
    key = jax.eval_shape(jax.random.key, 0)
    keys = _rows(mesh, SPLIT, rows, key.shape, key.dtype)
    start = sampling.Start(
        tokens=_rows(mesh, SPLIT, rows, (tokens,), jnp.int32),
        negative_tokens=_rows(mesh, EVERYWHERE, 1, (tokens,), jnp.int32)
        if guided
        else None,
        guidance=_rows(mesh, SPLIT, rows, (), jnp.float32),
        keys=keys,
        latents=None,
        noise_keys=keys if solver.adds_noise else None,
    )
    schedule = jax.eval_shape(lambda: solver.schedule(num_steps))
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), schedule)
    plain = sampling.functions(networks, tuple(shape))
    context, state = jax.eval_shape(plain.begin, params, start)
    context, state = planning.shapes((context, state), mesh, SPLIT)
    step = params["unet"], row, context, start.guidance, state
    compiled = sampling.programs_of(networks, tuple(shape), mesh, sampling.specs(start))
    if counted_only:
        programs = {}
    elif jax.default_backend() == "cpu":
        size = rows
        if mesh.size == 1:
            size = placement.part_size(rows, networks.decoded_at_once(shape))
        part = _rows(mesh, SPLIT, size, tuple(shape), state.sample.dtype)
        programs = {
            "texts": compiled.begin.lower(params, start),
            "a step": compiled.step.lower(*step),
            "decoding": compiled.end.lower(networks.decoder(params), part),
        }
    else:
        programs = {"a batch": compiled.whole.lower(params, start, schedule)}
    decoder = networks.decoder(params)
    flops = {
        "texts": (planning.flops(plain.begin, params, start), 1),
        "steps": (planning.flops(plain.step, *step), num_steps),
        "decoding": (
            planning.flops(plain.end, decoder, state.sample),
            1,
        ),
    }
    return Lowered(params, programs, flops)


def _rows(mesh, spec, count, shape, dtype) -> jax.ShapeDtypeStruct:
    return planning.shapes(jax.ShapeDtypeStruct((count, *shape), dtype), mesh, spec)
