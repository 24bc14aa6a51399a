"""Text to images with Stable Diffusion 1.x and 2.x.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv 2112.10752); Ho and Salimans, "Classifier-Free Diffusion Guidance"
(arXiv 2207.12598).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Int, Key, UInt8

from gptfl_jax import artifacts
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import vae
from gptfl_jax.generators.diffusion.solvers import DDIM, DPMSolver
from gptfl_jax.generators.diffusion.unet import (
    UNet2DCondition,
    UNetConfig,
)
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures import clip_text
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks, Start, sample
from gptfl_jax.generators.placement import EVERYWHERE
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
        networks = _read_networks(folder, dtype)
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
        shape = self.networks.latent_shape(height, width)
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
        start = Start(tokens, negative_tokens, guidance, keys, latents)
        schedule = self.solver.schedule(num_steps)
        images = sample(
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


# Files ------------------------------------------------------------------------------

# What the config files of releases say, for plans where they cannot be read.
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
_OPENCLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "hidden_act": "gelu",
}
_VERSION_1 = {"cross_attention_dim": 768}
_VERSION_2 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
# By the end of a repository's name.
_RELEASES = {
    "stable-diffusion-v1-4": (_CLIP_L, _VERSION_1),
    "stable-diffusion-v1-5": (_CLIP_L, _VERSION_1),
    "stable-diffusion-2-base": (_OPENCLIP_H, _VERSION_2),
    "stable-diffusion-2-1-base": (_OPENCLIP_H, _VERSION_2),
    "stable-diffusion-2": (_OPENCLIP_H, _VERSION_2 | {"sample_size": 96}),
    "stable-diffusion-2-1": (_OPENCLIP_H, _VERSION_2 | {"sample_size": 96}),
}


def networks_of(
    path_or_id: str | pathlib.Path, dtype: DTypeLike = jnp.float32
) -> Networks:
    """The networks of a pipeline by its config files alone, without weights.

    Of the releases of Stable Diffusion these need not be there.

    Raises:
        UserError: as `StableDiffusion.from_pretrained`.
    """
    try:
        return _read_networks(_find(path_or_id, None), dtype)
    except hub.ModelNotFound:
        release = _RELEASES.get(pathlib.PurePath(path_or_id).name)
        if release is None:
            raise
    options = dict(zip(("text_encoder", "unet", "vae"), (*release, _VAE), strict=True))
    return _make_networks(
        {name: c.config(**options[name]) for name, c in _COMPONENTS.items()}, dtype
    )


def _read_networks(folder: pathlib.Path, dtype: DTypeLike) -> Networks:
    configs = {}
    for name, component in _COMPONENTS.items():
        path = folder / name / "config.json"
        configs[name] = component.config.from_json(hub.read_json(path), str(path))
    return _make_networks(configs, dtype)


def _make_networks(configs: Mapping[str, Any], dtype: DTypeLike) -> Networks:
    return Networks(
        **{
            name: component.network(configs[name], dtype=jnp.dtype(dtype))
            for name, component in _COMPONENTS.items()
        }
    )


def _find(path_or_id, revision) -> pathlib.Path:
    """The pipeline's folder, with all but the weights."""
    patterns = ["model_index.json", "config.json", "scheduler/*", "tokenizer/*"]
    patterns += [f"{name}/config.json" for name in _COMPONENTS]
    folder = hub.snapshot(path_or_id, patterns, revision)
    kind, index = hub.kind(folder), folder / "model_index.json"
    usable = not kind or "StableDiffusion" in kind
    if not usable or "unet" not in hub.read_json(index):
        raise UserError(
            f"{index if index.is_file() else path_or_id}: {kind} is no Stable "
            "Diffusion pipeline: name another model, as 'glyphs'"
        )
    return folder


def _fetch(path_or_id, revision) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """The pipeline's folder, and the file with each network's weights."""
    stems = {name: [f"{name}/{c.stem}"] for name, c in _COMPONENTS.items()}
    for name, component in _COMPONENTS.items():
        if component.library == "transformers":  # so it names its `.bin` files
            stems[name].append(f"{name}/pytorch_model")
    folder = _find(path_or_id, revision)
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
