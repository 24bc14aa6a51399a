"""From noise to what latents stand for: the loop that latent diffusion models share.

Which networks there are, and how a prompt conditions the UNet, a pipeline says by its
`Networks`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import solvers
from gptfl_jax.generators.diffusion.solvers import Schedule
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT


@runtime_checkable
class Networks(Protocol):
    """The networks of a pipeline, unbound; equal ones share compiled programs.

    `params` are those of all networks, by name; "unet" is one of them.
    """

    unet: Any
    """Its `dtype` is that of the computation."""

    def shapes(self) -> dict[str, Any]:
        """Parameters of each network, as `jax.ShapeDtypeStruct`s."""

    def encode(self, params: Any, tokens: Int[Array, "rows length"]) -> Array:
        """What the text encoder makes of prompts, a row each."""

    def condition(
        self, params: Any, encoded: Array, guidance: Float[Array, " samples"]
    ) -> PyTree[Array]:
        """What every step takes of that; the first array has its rows.

        `guidance` is for a UNet that was distilled to take its scale as an input.
        """

    def takes_guidance(self) -> bool:
        """Whether the UNet is one."""

    def predict(
        self, params: Any, latents: Array, timesteps: Array, conditions: PyTree
    ) -> Array:
        """The UNet's output; of `params` only its own are given."""

    def decoder(self, params: Any) -> Any:
        """The parameters that `decode` takes."""

    def decode(self, params: Any, latents: Array) -> Array:
        """What latents stand for."""

    def decoded_at_once(self, shape: Sequence[int]) -> int:
        """Of latents of this shape, how many a CPU should decode at once."""


class Start(NamedTuple):
    """What a batch starts from; every row belongs to a sample.

    `negative_tokens` is None without guidance, and one row when it is the same for all.
    One of `keys` and `latents` is None. `noise_keys` are for a solver that adds noise.
    """

    tokens: Any
    negative_tokens: Any
    guidance: Any
    keys: Any
    latents: Any
    noise_keys: Any = None


class State(NamedTuple):
    """The sampler's state between two steps."""

    sample: Float[Array, "batch height width channels"]
    clean: Float[Array, "batch height width channels"]
    noise_keys: Key[Array, " batch"] | None = None


def make_start(
    prompts: Sequence[str],
    tokenize: Callable[[Sequence[str]], Int[np.ndarray, "prompts length"]],
    key: Key[Array, "*samples"] | None,
    guidance_scale: ArrayLike | Sequence[int | float],
    negative_prompts: str | Sequence[str] | None,
    latents: Array | None,
    *,
    adds_noise: bool = False,
    takes_guidance: bool = False,
) -> Start:
    """What a batch starts from, of the arguments of a pipeline's call.

    Args:
        adds_noise: whether the solver does, at every step.
        takes_guidance: of the UNet, which then needs no negative prompt.

    Raises:
        ValueError: if they do not fit together.
    """
    batch = len(prompts)
    keys = None
    if key is not None:
        keys = placement.sample_keys(key, batch, "prompts")
    elif latents is None:
        raise ValueError("takes a key, or latents, to start from")
    elif adds_noise:
        raise ValueError("takes a key beside the latents: the solver adds noise")
    noise_keys = keys if adds_noise else None
    keys = None if latents is not None else keys
    guidance = np.asarray(guidance_scale, np.float32)
    if guidance.shape not in ((), (batch,)) or not np.isfinite(guidance).all():
        raise ValueError(
            f"guidance_scale of shape {guidance.shape}: takes a finite number, or "
            f"{batch} of them"
        )
    # Drawn values may all be 1 in some batch: it runs the program of the others.
    guided = (guidance.ndim == 1 or guidance > 1) and not takes_guidance
    guidance = np.broadcast_to(np.maximum(guidance, 1), (batch,))
    tokens = tokenize(prompts)
    negative_tokens = None
    if guided:
        if negative_prompts is None or isinstance(negative_prompts, str):
            negative_tokens = tokenize([negative_prompts or ""])
        elif len(negative_prompts) == batch:
            negative_tokens = tokenize(negative_prompts)
        else:
            raise ValueError(
                f"{len(negative_prompts)} negative prompts for {batch} prompts"
            )
    return Start(tokens, negative_tokens, guidance, keys, latents, noise_keys)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses what is no list of prompts.

    Raises:
        ValueError: it is one text, or empty.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts: takes a list of at least one prompt")


def check_tokens(tokens: Int[np.ndarray, "prompts length"], known: int) -> None:
    """Refuses tokens that a text encoder of so many does not know.

    Raises:
        UserError: there is one.
    """
    if tokens.max() >= known:
        raise UserError(
            f"the tokenizer makes token {tokens.max()}, but the text encoder knows "
            f"only {known}: they belong to different models"
        )


def sample(
    networks: Networks,
    shape: Sequence[int],
    mesh: Mesh,
    params: Any,
    start: Start,
    schedule: Schedule,
) -> Array:
    """What the batch's latents stand for, by the loop that suits the backend.

    Args:
        networks: of the pipeline.
        shape: of a sample's latents, [height, width, channels].
        mesh: of `placement.mesh`.
        params: on each device of it.
        start: of `make_start`.
        schedule: of the solver.

    Returns:
        The samples; behind them the last again, where the devices need it.
    """
    shape, start = tuple(shape), _split(start, mesh)
    programs = programs_of(networks, shape, mesh, specs(start))
    if jax.default_backend() != "cpu":
        return programs.whole(params, start, schedule)
    # Strided convolutions inside a loop of XLA's are 1.7 times slower on a CPU.
    conditions, state = programs.begin(params, start)
    for i in range(len(schedule.timesteps)):
        row = jax.tree.map(lambda column, i=i: column[i], schedule)
        state = programs.step(params["unet"], row, conditions, start.guidance, state)
    decoder = networks.decoder(params)
    if mesh.size > 1:
        return programs.end(decoder, state.sample)
    return placement.in_parts(
        lambda sample: programs.end(decoder, sample),
        state.sample,
        networks.decoded_at_once(shape),
    )


def _split(start: Start, mesh: Mesh) -> Start:
    """The rows over the devices, but a negative prompt for all is on each."""
    shared = None
    if start.negative_tokens is not None and len(start.negative_tokens) == 1:
        everywhere = NamedSharding(mesh, EVERYWHERE)
        shared = jax.device_put(start.negative_tokens, everywhere)
        start = start._replace(negative_tokens=None)
    start = placement.split(start, mesh)
    return start if shared is None else start._replace(negative_tokens=shared)


class Functions(NamedTuple):
    """What sampling consists of."""

    whole: Callable
    """All of the following, with a loop of XLA's."""
    begin: Callable
    """params, start -> conditions, state"""
    step: Callable
    """the UNet's params, row of the schedule, conditions, guidance, state -> state"""
    end: Callable
    """the decoder's params, latents -> samples"""


def functions(networks: Networks, shape: Sequence[int]) -> Functions:
    """What sampling consists of; `shape` is that of a sample's latents."""

    def begin(params, start):
        encoded = networks.encode(params, start.tokens)
        if start.negative_tokens is not None:
            negative = networks.encode(params, start.negative_tokens)
            negative = jnp.broadcast_to(negative, encoded.shape)
            encoded = jnp.concatenate([negative, encoded])
        sample = start.latents
        if sample is None:
            sample = jax.vmap(lambda key: jax.random.normal(key, shape))(start.keys)
        conditions = networks.condition(params, encoded, start.guidance)
        return conditions, State(sample, jnp.zeros_like(sample), start.noise_keys)

    def step(params, row, conditions, guidance, state):
        sample, clean, noise_keys = state
        guided = len(jax.tree.leaves(conditions)[0]) > len(sample)
        inputs = jnp.concatenate([sample, sample]) if guided else sample
        timesteps = row.timesteps[None]
        output = networks.predict(params, inputs, timesteps, conditions)
        output = output.astype(jnp.float32)
        if guided:
            negative, positive = jnp.split(output, 2)
            strength = guidance[:, None, None, None]
            output = negative + strength * (positive - negative)
        noise = None
        if noise_keys is not None:
            # A number that no draw before has folded in: of each level its own.
            noise = jax.vmap(
                lambda key: jax.random.normal(
                    jax.random.fold_in(key, row.timesteps), shape
                )
            )(noise_keys)
        return State(*solvers.step(row, sample, output, clean, noise), noise_keys)

    def whole(params, start, schedule):
        conditions, state = begin(params, start)

        def body(state, row):
            return step(params["unet"], row, conditions, start.guidance, state), None

        state, _ = jax.lax.scan(body, state, schedule)
        return networks.decode(networks.decoder(params), state.sample)

    return Functions(whole, begin, step, networks.decode)


@functools.lru_cache(maxsize=32)
def programs_of(
    networks: Networks, shape: tuple[int, ...], mesh: Mesh, specs: Start
) -> Functions:
    """The compiled parts of sampling, each split over the devices of `mesh`."""
    whole, begin, step, end = functions(networks, shape)

    def program(function, *in_specs, donate=()):
        return placement.compiled(function, mesh, in_specs, donate=donate)

    return Functions(
        whole=program(whole, EVERYWHERE, specs, EVERYWHERE),
        begin=program(begin, EVERYWHERE, specs),
        step=program(step, EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT, donate=(4,)),
        end=program(end, EVERYWHERE, SPLIT),
    )


def specs(start: Start) -> Start:
    """How a batch lies on the devices."""
    specs = jax.tree.map(lambda _: SPLIT, start)
    if start.negative_tokens is not None and start.negative_tokens.shape[0] == 1:
        specs = specs._replace(negative_tokens=EVERYWHERE)
    return specs
