"""Text to images with Stable Diffusion 1.x and 2.x.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv 2112.10752); Ho and Salimans, "Classifier-Free Diffusion Guidance"
(arXiv 2207.12598).
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Int, Key, UInt8

from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import folders, sampling, vae
from gptfl_jax.generators.diffusion.folders import Component
from gptfl_jax.generators.diffusion.solvers import Solver
from gptfl_jax.generators.diffusion.unet import (
    UNet2DCondition,
    UNetConfig,
)
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures import clip_text
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks
from gptfl_jax.generators.placement import EVERYWHERE
from gptfl_jax.released import hub, torch_weights
from gptfl_jax.released import lora as low_rank
from gptfl_jax.released.model_config import building

_COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "model",
        CLIPTextConfig,
        CLIPTextModel,
        clip_text.current_name,
        "text_model.",
    ),
    "unet": Component(
        "diffusers", "diffusion_pytorch_model", UNetConfig, UNet2DCondition
    ),
    "vae": Component(
        "diffusers",
        "diffusion_pytorch_model",
        VAEConfig,
        AutoencoderKL,
        vae.current_name,
        wide=True,
    ),
}


# Of models that do not ask for another.
SOLVER = "dpmsolver++"


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
        solver: Solver,
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
        solver: str | Solver = "auto",
        revision: str | None = None,
        lora: str | pathlib.Path | None = None,
        lora_scale: int | float = 1.0,
    ) -> "StableDiffusion":
        """Loads a pipeline in the format of `diffusers`.

        The noise levels and the kind of prediction are those of the model's own
        scheduler; its sampler is replaced by `solver`. A safety checker is not loaded.

        Args:
            path_or_id: a folder, a model shipped with this package, or a Hugging Face
                repository.
            dtype: of parameters and computation: float32, bfloat16 or float16, beside
                which the autoencoder stays in float32. Norms' statistics, attention
                logits and the solver are float32 always.
            solver: the sampler: "dpmsolver++", "ddim", or "lcm" for latent consistency
                models, with the settings of the model's scheduler; or one with settings
                of its own. "auto" is "lcm" for a model whose own scheduler it is, and
                "dpmsolver++" for others.
            revision: branch, tag or commit of a repository.
            lora: LoRA weights to add to the UNet's and the text encoder's, in the
                formats of `diffusers`: a .safetensors file, a folder or repository with
                a pytorch_lora_weights.safetensors, or "owner/name:file".
            lora_scale: how much of them is added.

        Raises:
            UserError: if there is no such model, a file is missing or damaged, or it is
                not a text-to-image model of Stable Diffusion 1.x or 2.x; or the LoRA
                weights are not for it.
        """
        folders.check_solver(solver)
        folder = _find(path_or_id, revision)
        files = folders.fetch_weights(folder, path_or_id, _COMPONENTS, revision)
        networks = Networks(**folders.read_networks(folder, _COMPONENTS, dtype))
        with building(folder):
            shapes = networks.shapes()
        updates = {}
        if lora:
            updated = ("unet", "text_encoder")
            layers = {name: torch_weights.layers(shapes[name]) for name in updated}
            updates = low_rank.read(lora, layers)
        params = {
            name: folders.read_params(
                component,
                shapes[name],
                files[name],
                dtype,
                updates.get(name),
                float(lora_scale),
            )
            for name, component in _COMPONENTS.items()
        }
        solver = folders.read_solver(folder, solver, SOLVER)
        return cls(networks, params, folders.load_tokenizer(folder), solver)

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
            key: for the initial noise, and what the solver "lcm" adds: one, from which
                sample i takes `fold_in(key, i)`, or an array with one for each sample.
            num_steps: evaluations of the UNet a sample (twice as many with guidance,
                unless the UNet was distilled to take its scale as an input).
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
        sampling.check_prompts(prompts)
        batch = len(prompts)
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
        start = sampling.make_start(
            prompts,
            self.tokenize,
            key,
            guidance_scale,
            negative_prompts,
            latents,
            adds_noise=self.solver.adds_noise,
            takes_guidance=self.networks.takes_guidance(),
        )
        schedule = self.solver.schedule(num_steps)
        images = sampling.sample(
            self.networks, shape, self._mesh, self.params, start, schedule
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
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
        }
        folders.save(
            pathlib.Path(folder),
            index,
            _COMPONENTS,
            {name: getattr(self.networks, name).config for name in _COMPONENTS},
            {name: folders.weights_of(self.params[name]) for name in _COMPONENTS},
            self.solver,
            self.tokenizer,
            dtype,
        )

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "prompts length"]:
        """The tokens of prompts, cut or filled up to the text encoder's length.

        Raises:
            UserError: the tokenizer belongs to another text encoder.
        """
        longest = self.networks.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=min(self.tokenizer.model_max_length, longest),
            truncation=True,
            return_tensors="np",
        )
        tokens = np.asarray(tokens.input_ids, np.int32)
        sampling.check_tokens(tokens, self.networks.text_encoder.config.vocab_size)
        return tokens


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
        folder = _find(path_or_id, None)
        return Networks(**folders.read_networks(folder, _COMPONENTS, dtype))
    except hub.ModelNotFound:
        release = _RELEASES.get(pathlib.PurePath(path_or_id).name)
        if release is None:
            raise
    options = dict(zip(("text_encoder", "unet", "vae"), (*release, _VAE), strict=True))
    configs = {name: c.config(**options[name]) for name, c in _COMPONENTS.items()}
    return Networks(**folders.make_networks(configs, _COMPONENTS, dtype))


def _find(path_or_id, revision) -> pathlib.Path:
    return folders.find(
        path_or_id,
        _COMPONENTS,
        lambda kind: "StableDiffusion" in kind or "LatentConsistency" in kind,
        "Stable Diffusion pipeline: name another model, as 'glyphs'",
        revision,
    )
