"""Text to images with Stable Diffusion 1.x and 2.x.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv 2112.10752); Ho and Salimans, "Classifier-Free Diffusion Guidance"
(arXiv 2207.12598).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import blocks, solvers, vae
from gptfl_jax.generators.diffusion.solvers import DDIM, DPMSolver
from gptfl_jax.generators.diffusion.unet import (
    UNet2DCondition,
    UNetConfig,
    project_context,
)
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures import clip_text
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT
from gptfl_jax.released import hub, torch_weights
from gptfl_jax.released.model_config import building


class _Component(NamedTuple):
    """A network of the pipeline: its folder, files and classes."""

    library: str
    stem: str  # of its weights, in the component's folder
    config: type
    network: type
    current_name: Callable[[str], str | None]


_COMPONENTS = {
    "text_encoder": _Component(
        "transformers", "model", CLIPTextConfig, CLIPTextModel, clip_text.current_name
    ),
    "unet": _Component(
        "diffusers",
        "diffusion_pytorch_model",
        UNetConfig,
        UNet2DCondition,
        lambda name: name,
    ),
    "vae": _Component(
        "diffusers",
        "diffusion_pytorch_model",
        VAEConfig,
        AutoencoderKL,
        vae.current_name,
    ),
}


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


class StableDiffusion:
    """Makes images from prompts.

    Attributes:
        networks: the networks and, inside, their configs and the dtype of computation.
        params: "text_encoder", "unet" and "vae": the parameters of each.
        tokenizer: of `transformers`, or any callable with its interface.
        solver: the sampler and the noise levels of training.
    """

    def __init__(
        self,
        networks: Networks,
        params: Mapping[str, Any],
        tokenizer: Any,
        solver: DPMSolver | DDIM,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts a pipeline together from its parts.

        `devices` are those of this process to split batches over, by default those of
        `placement.mesh`.

        Raises:
            UserError: if the parts do not fit together.
        """
        unet_config, vae_config = networks.unet.config, networks.vae.config
        context = networks.text_encoder.config.hidden_size
        for name, value, expected, of in (
            ("in_channels", unet_config.in_channels, vae_config.latent_channels, "vae"),
            (
                "out_channels",
                unet_config.out_channels,
                vae_config.latent_channels,
                "vae",
            ),
            ("cross_attention_dim", unet_config.cross_attention_dim, context, "text"),
        ):
            if value != expected:
                raise UserError(
                    f"unet/config.json: {name} = {value}, but the {of} model beside it "
                    f"makes {expected}: only text-to-image models of Stable Diffusion "
                    "1.x and 2.x are supported"
                )
        self.networks = networks
        self.tokenizer = tokenizer
        self.solver = solver
        self._mesh = placement.mesh(devices)
        everywhere = NamedSharding(self._mesh, EVERYWHERE)
        self.params = jax.device_put(dict(params), everywhere)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | pathlib.Path,
        *,
        dtype: DTypeLike = jnp.float32,
        solver: str | DPMSolver | DDIM = "dpmsolver++",
        revision: str | None = None,
    ) -> "StableDiffusion":
        """Loads a pipeline in the format of `diffusers`.

        The noise levels and the kind of prediction are those of the model's own
        scheduler; its sampler is replaced by `solver`. A safety checker is not loaded.

        Args:
            path_or_id: a folder, a model shipped with this package, or a Hugging Face
                repository.
            dtype: of parameters and computation: float32 or bfloat16.
            solver: the sampler: "dpmsolver++" or "ddim", with the settings of the
                model's scheduler; or one with settings of its own.
            revision: branch, tag or commit of a repository.

        Raises:
            UserError: if there is no such model, a file is missing or damaged, or it is
                not a text-to-image model of Stable Diffusion 1.x or 2.x.
        """
        samplers = {"dpmsolver++": DPMSolver, "ddim": DDIM}
        if isinstance(solver, str) and solver not in samplers:
            raise UserError(f"solver = {solver!r}: takes {' or '.join(samplers)}")
        folder, files = _fetch(path_or_id, revision)
        configs = {}
        for name, component in _COMPONENTS.items():
            path = folder / name / "config.json"
            configs[name] = component.config.from_json(hub.read_json(path), str(path))
        networks = Networks(
            **{
                name: component.network(configs[name], dtype=jnp.dtype(dtype))
                for name, component in _COMPONENTS.items()
            }
        )
        with building(folder):
            all_shapes = networks.shapes()
        params = {}
        for name, shapes in all_shapes.items():
            params[name] = torch_weights.from_torch(
                shapes,
                hub.open_weights(files[name]),
                str(files[name]),
                _COMPONENTS[name].current_name,
                dtype,
                torch_weights.on_device,
            )
        if isinstance(solver, str):
            path = folder / "scheduler" / "scheduler_config.json"
            solver = samplers[solver].from_json(hub.read_json(path), str(path))
        return cls(networks, params, _load_tokenizer(folder), solver)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        key: Key[Array, "*samples"] | None = None,
        num_steps: int = 25,
        guidance_scale: ArrayLike | Sequence[int | float] = 7.5,
        negative_prompts: str | Sequence[str] | None = None,
        latents: ArrayLike | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> UInt8[Array, "batch height width channels"]:
        """Makes an image for each prompt.

        A sample depends on its prompt, key, guidance and nothing else: the rest of the
        batch and the number of devices change only rounding errors.

        Args:
            prompts: what to show; what is longer than the text encoder takes is cut.
            key: for the initial noise: one, from which sample i takes `fold_in(key,
                i)`, or an array with one for each sample.
            num_steps: evaluations of the UNet a sample (twice as many with guidance).
            guidance_scale: strength of the guidance, a number or one a sample; at 1 and
                below there is none, which as one number for all saves half of the time.
            negative_prompts: what to steer away from, one for all or one a sample;
                nothing when None.
            latents: initial noise of unit variance, [batch, height / f, width / f,
                latent channels] with f the factor of the autoencoder; drawn when None.
            height: of the images, in pixels, a multiple of f; the model's own when
                None.
            width: likewise.

        Returns:
            The images, 0 to 255.

        Raises:
            UserError: if a size or the number of steps is not one the model can make.
            ValueError: if the arguments do not fit together.
        """
        batch = len(prompts)
        if isinstance(prompts, str) or not batch:
            raise ValueError("prompts: takes a list of at least one prompt")
        config, factor = self.networks.unet.config, self.networks.vae.config.factor
        shape = self._latent_shape(height, width)
        if latents is not None:
            latents = jnp.asarray(latents, jnp.float32)
            if height is None and width is None and latents.ndim == 4:
                shape = latents.shape[1:]
            if latents.shape != (batch, *shape) or shape[-1] != config.in_channels:
                raise ValueError(
                    f"latents of shape {latents.shape}: takes {(batch, *shape)} for "
                    f"{batch} prompts and images of {shape[0] * factor} x "
                    f"{shape[1] * factor} pixels"
                )
            keys = None
        elif key is None:
            raise ValueError("takes a key, or latents, to start from")
        else:
            keys = placement.sample_keys(key, batch, "prompts")
        guidance = np.asarray(guidance_scale, np.float32)
        if guidance.shape not in ((), (batch,)) or not np.isfinite(guidance).all():
            raise ValueError(
                f"guidance_scale of shape {guidance.shape}: takes a finite number, or "
                f"{batch} of them"
            )
        # Drawn values may all be 1 in some batch: it runs the program of the others.
        guided = guidance.ndim == 1 or guidance > 1
        guidance = np.broadcast_to(np.maximum(guidance, 1), (batch,))
        tokens = self._tokenize(prompts)
        negative_tokens = None
        if guided:
            if negative_prompts is None or isinstance(negative_prompts, str):
                negative_tokens = self._tokenize([negative_prompts or ""])
            elif len(negative_prompts) == batch:
                negative_tokens = self._tokenize(negative_prompts)
            else:
                raise ValueError(
                    f"{len(negative_prompts)} negative prompts for {batch} prompts"
                )
        start = _Start(tokens, negative_tokens, guidance, keys, latents)
        schedule = self.solver.schedule(num_steps)
        images = _sample(
            self.networks, shape, self._mesh, self.params, self._split(start), schedule
        )
        return images[:batch]

    def save_pretrained(
        self, folder: str | pathlib.Path, dtype: DTypeLike | None = None
    ) -> None:
        """Writes the pipeline in the format of `diffusers`, as safetensors.

        Args:
            folder: where to; files that are there already are replaced.
            dtype: of the weights; by default as they are.
        """
        folder = pathlib.Path(folder)
        index: dict[str, Any] = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", self.solver.torch_class],
            "tokenizer": ["transformers", _tokenizer_class(self.tokenizer)],
        }
        for name, component in _COMPONENTS.items():
            config = getattr(self.networks, name).config
            index[name] = [component.library, config.torch_class]
            weights = torch_weights.to_torch(jax.device_get(self.params[name]))
            if dtype is not None:
                weights = {key: value.astype(dtype) for key, value in weights.items()}
            if name == "text_encoder":
                # The name that every version of transformers reads.
                weights = {f"text_model.{key}": value for key, value in weights.items()}
            hub.write_weights(folder / name / f"{component.stem}.safetensors", weights)
            artifacts.write_json(folder / name / "config.json", config.to_json())
        artifacts.write_json(
            folder / "scheduler" / "scheduler_config.json", self.solver.to_json()
        )
        self.tokenizer.save_pretrained(folder / "tokenizer")
        # Last: a folder with an index is a whole one.
        artifacts.write_json(folder / "model_index.json", index)

    def _latent_shape(self, height, width):
        factor = self.networks.vae.config.factor
        config = self.networks.unet.config
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

    def _tokenize(self, prompts) -> Int[np.ndarray, "prompts length"]:
        longest = self.networks.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, longest),
            truncation=True,
            return_tensors="np",
        )
        tokens = np.asarray(tokens.input_ids, np.int32)
        known = self.networks.text_encoder.config.vocab_size
        if tokens.max() >= known:
            raise UserError(
                f"the tokenizer makes token {tokens.max()}, but the text encoder knows "
                f"only {known}: they belong to different models"
            )
        return tokens

    def _split(self, start):
        """The rows over the devices, but a negative prompt for all is on each."""
        shared = None
        if start.negative_tokens is not None and len(start.negative_tokens) == 1:
            everywhere = NamedSharding(self._mesh, EVERYWHERE)
            shared = jax.device_put(start.negative_tokens, everywhere)
            start = start._replace(negative_tokens=None)
        start = placement.split(start, self._mesh)
        return start if shared is None else start._replace(negative_tokens=shared)


class _Start(NamedTuple):
    """What a batch starts from; every row belongs to a sample.

    `negative_tokens` is None without guidance, and one row when it is the same for all.
    One of `keys` and `latents` is None.
    """

    tokens: Any
    negative_tokens: Any
    guidance: Any
    keys: Any
    latents: Any


class _State(NamedTuple):
    """The sampler's state between two steps."""

    sample: Float[Array, "batch height width channels"]
    clean: Float[Array, "batch height width channels"]


def _sample(networks, shape, mesh, params, start, schedule):
    """Images, by the loop that suits the backend."""
    one_prompt = start.negative_tokens is not None and len(start.negative_tokens) == 1
    specs = jax.tree.map(lambda _: SPLIT, start)
    if one_prompt:
        specs = specs._replace(negative_tokens=EVERYWHERE)
    programs = _programs(networks, shape, mesh, specs)
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


class _Programs(NamedTuple):
    whole: Callable
    begin: Callable
    step: Callable
    end: Callable


@functools.lru_cache(maxsize=32)
def _programs(networks, shape, mesh, specs) -> _Programs:
    """The compiled parts of sampling, each split over the devices of `mesh`."""

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
        return (context, projected), _State(sample, jnp.zeros_like(sample))

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
        return _State(*solvers.step(row, sample, output, clean))

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

    def program(function, *in_specs, donate=()):
        return placement.compiled(function, mesh, in_specs, donate=donate)

    return _Programs(
        whole=program(whole, EVERYWHERE, specs, EVERYWHERE),
        begin=program(begin, EVERYWHERE, specs),
        step=program(step, EVERYWHERE, EVERYWHERE, SPLIT, SPLIT, SPLIT, donate=(4,)),
        end=program(end, EVERYWHERE, SPLIT),
    )


# Files ------------------------------------------------------------------------------


def _fetch(path_or_id, revision) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """The pipeline's folder, and the file with each network's weights."""
    patterns = ["model_index.json", "config.json", "scheduler/*", "tokenizer/*"]
    patterns += [f"{name}/config.json" for name in _COMPONENTS]
    stems = {name: [f"{name}/{c.stem}"] for name, c in _COMPONENTS.items()}
    for name, component in _COMPONENTS.items():
        if component.library == "transformers":  # so it names its `.bin` files
            stems[name].append(f"{name}/pytorch_model")
    folder = hub.snapshot(path_or_id, patterns, revision)
    kind, index = hub.kind(folder), folder / "model_index.json"
    usable = not kind or "StableDiffusion" in kind
    if not usable or "unet" not in hub.read_json(index):
        raise UserError(
            f"{index if index.is_file() else path_or_id}: {kind} is no Stable "
            "Diffusion pipeline: name another model, as 'glyphs'"
        )
    return folder, hub.fetch_weights(folder, path_or_id, stems, revision)


def _load_tokenizer(folder):
    path = folder / "model_index.json"
    match hub.read_json(path).get("tokenizer"):
        case [_, str(name)]:
            return hub.load_tokenizer(folder / "tokenizer", name, path)
    raise UserError(f"{path}: names no tokenizer: download the model again")


def _tokenizer_class(tokenizer) -> str:
    name = type(tokenizer).__name__
    # Older versions know the general class under its older name alone.
    return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name
