"""Text to sounds with AudioLDM.

Liu et al., "AudioLDM: Text-to-Audio Generation with Latent Diffusion Models"
(arXiv 2301.12503); Ho and Salimans, "Classifier-Free Diffusion Guidance"
(arXiv 2207.12598).
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, Key

from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import folders, lowering, sampling, vae
from gptfl_jax.generators.diffusion.folders import Component
from gptfl_jax.generators.diffusion.lowering import Lowered
from gptfl_jax.generators.diffusion.solvers import Solver
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.placement import EVERYWHERE
from gptfl_jax.generators.sounds import clap_text
from gptfl_jax.generators.sounds.clap_text import CLAPTextConfig, CLAPTextModel
from gptfl_jax.generators.sounds.networks import Networks
from gptfl_jax.generators.speech import hifigan
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.released import hub
from gptfl_jax.released.model_config import building

_COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "model",
        CLAPTextConfig,
        CLAPTextModel,
        clap_text.current_name,
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
    "vocoder": Component("transformers", "model", HifiGanConfig, HifiGan, wide=True),
}
# Of models that do not ask for another.
SOLVER = "ddim"
# Prompts are filled up to a multiple of this: few lengths, so few programs.
_TOKENS = 32


class AudioLDM:
    """Makes sounds from prompts.

    Attributes:
        networks: the networks and, inside, their configs and the dtype of computation.
        params: "text_encoder", "unet" and "vae": the parameters of each; "vocoder": its
            variables.
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
        networks.check()
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
    ) -> "AudioLDM":
        """Loads a pipeline in the format of `diffusers`.

        The noise levels and the kind of prediction are those of the model's own
        scheduler; its sampler is replaced by `solver`. CLAP's audio tower, which some
        repositories hold for ranking samples, is not loaded.

        Args:
            path_or_id: a folder, a model shipped with this package, or a Hugging Face
                repository, as "cvssp/audioldm".
            dtype: of parameters and computation: float32, bfloat16 or float16, beside
                which the autoencoder and the vocoder stay in float32.
            solver: the sampler: "ddim", which the releases use, "dpmsolver++" or "lcm",
                with the settings of the model's scheduler; or one with settings of its
                own. "auto" is "ddim", unless the model's own scheduler is "lcm".
            revision: branch, tag or commit of a repository.

        Raises:
            UserError: if there is no such model, a file is missing or damaged, or it is
                no AudioLDM of the first version.
        """
        folders.check_solver(solver)
        folder = _find(path_or_id, revision)
        files = folders.fetch_weights(folder, path_or_id, _COMPONENTS, revision)
        networks = Networks(**folders.read_networks(folder, _COMPONENTS, dtype))
        with building(folder):
            networks.check()
            shapes = networks.shapes()
        params = {
            name: folders.read_params(component, shapes[name], files[name], dtype)
            for name, component in _COMPONENTS.items()
            if name != "vocoder"
        }
        file = files["vocoder"]
        params["vocoder"] = hifigan.from_torch(
            networks.vocoder, hub.read_weights(file), str(file), networks.vocoder.dtype
        )
        solver = folders.read_solver(folder, solver, SOLVER)
        return cls(networks, params, folders.load_tokenizer(folder), solver)

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        key: Key[Array, "*samples"] | None = None,
        num_steps: int = 100,
        guidance_scale: ArrayLike | Sequence[int | float] = 2.5,
        duration_s: int | float = 5.0,
        negative_prompts: str | Sequence[str] | None = None,
        latents: ArrayLike | None = None,
    ) -> Float[Array, "batch samples"]:
        """Makes a sound for each prompt.

        A sample depends on its prompt, key, guidance and nothing else: the rest of the
        batch and the number of devices change only rounding errors.

        Args:
            prompts: what is to be heard; what is longer than the text encoder takes is
                cut.
            key: for the initial noise, and what the solver "lcm" adds: one, from which
                sample i takes `fold_in(key, i)`, or an array with one for each sample.
            num_steps: evaluations of the UNet a sample (twice as many with guidance).
            guidance_scale: strength of the guidance, a number or one a sample; at 1 and
                below there is none, which as one number for all saves half of the time.
            duration_s: of the sounds, in seconds.
            negative_prompts: what to steer away from, one for all or one a sample;
                nothing when None.
            latents: initial noise of unit variance, [batch, frames / f, mel bands / f,
                latent channels] with f the factor of the autoencoder and the frames
                rounded up to a multiple of it (`networks.latent_shape`); drawn when
                None.

        Returns:
            Waveforms in [-1, 1] at `networks.vocoder.config.sampling_rate` Hz (16,000
            in the releases), float32.

        Raises:
            UserError: if the duration or the number of steps is not one the model can
                make.
            ValueError: if the arguments do not fit together.
        """
        sampling.check_prompts(prompts)
        batch = len(prompts)
        shape = self.networks.latent_shape(duration_s)
        samples = self.networks.num_samples(duration_s)
        if latents is not None:
            latents = jnp.asarray(latents, jnp.float32)
            if latents.shape != (batch, *shape):
                raise ValueError(
                    f"latents of shape {latents.shape}: takes {(batch, *shape)} for "
                    f"{batch} prompts and sounds of {duration_s:g} s"
                )
        start = sampling.make_start(
            prompts,
            self._tokenize,
            key,
            guidance_scale,
            negative_prompts,
            latents,
            adds_noise=self.solver.adds_noise,
            takes_guidance=self.networks.takes_guidance(),
        )
        schedule = self.solver.schedule(num_steps)
        waves = sampling.sample(
            self.networks, shape, self._mesh, self.params, start, schedule
        )
        return waves[:batch, :samples]

    def save_pretrained(
        self, folder: str | pathlib.Path, dtype: DTypeLike | None = None
    ) -> None:
        """Writes the pipeline in the format of `diffusers`, as safetensors.

        Args:
            folder: where to; files that are there already are replaced.
            dtype: of the weights; by default as they are.
        """
        weights = {
            name: folders.weights_of(self.params[name])
            for name in _COMPONENTS
            if name != "vocoder"
        }
        weights["vocoder"] = hifigan.to_torch(jax.device_get(self.params["vocoder"]))
        folders.save(
            pathlib.Path(folder),
            {"_class_name": "AudioLDMPipeline", "_diffusers_version": "0.42.1"},
            _COMPONENTS,
            {name: getattr(self.networks, name).config for name in _COMPONENTS},
            weights,
            self.solver,
            self.tokenizer,
            dtype,
        )

    def _tokenize(self, prompts) -> Int[np.ndarray, "prompts length"]:
        config = self.networks.text_encoder.config
        longest = min(self.tokenizer.model_max_length, config.longest)
        rows = self.tokenizer(
            list(prompts), max_length=longest, truncation=True
        ).input_ids
        length = math.ceil(max(map(len, rows)) / _TOKENS) * _TOKENS
        shape = len(rows), min(length, longest)
        tokens = np.full(shape, config.pad_token_id, np.int32)
        for row, filled in zip(rows, tokens, strict=True):
            filled[: len(row)] = row
        sampling.check_tokens(tokens, config.vocab_size)
        return tokens


# What the config files of the release say, for plans where they cannot be read.
_RELEASE: dict[str, dict[str, Any]] = {
    "text_encoder": {},
    "unet": {
        "sample_size": 128,
        "in_channels": 8,
        "out_channels": 8,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        "block_out_channels": (128, 256, 384, 640),
        "cross_attention_dim": (128, 256, 384, 640),
        "class_embed_type": "simple_projection",
        "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": 512,
    },
    "vae": {
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (128, 256, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": 8,
        "scaling_factor": 0.9227914214134216,
    },
    "vocoder": {
        "model_in_dim": 64,
        "upsample_initial_channel": 1024,
        "upsample_rates": (5, 4, 2, 2, 2),
        "upsample_kernel_sizes": (16, 16, 8, 4, 4),
        "normalize_before": False,
    },
}
_RELEASED_AS = ("audioldm", "audioldm-s-full", "audioldm-s-full-v2")


def networks_of(
    path_or_id: str | pathlib.Path, dtype: DTypeLike = jnp.float32
) -> Networks:
    """The networks of a pipeline by its config files alone, without weights.

    Of the smallest releases (cvssp/audioldm) these need not be there.

    Raises:
        UserError: as `AudioLDM.from_pretrained`.
    """
    try:
        folder = _find(path_or_id, None)
        return Networks(**folders.read_networks(folder, _COMPONENTS, dtype))
    except hub.ModelNotFound:
        if pathlib.PurePath(path_or_id).name not in _RELEASED_AS:
            raise
    configs = {name: c.config(**_RELEASE[name]) for name, c in _COMPONENTS.items()}
    return Networks(**folders.make_networks(configs, _COMPONENTS, dtype))


def lower(
    networks: Networks,
    duration_s: int | float,
    mesh: Mesh,
    *,
    batch: int,
    num_steps: int,
    guided: bool,
    solver: Solver,
    counted_only: bool = False,
) -> Lowered:
    """The programs that sample a batch of sounds, as `lowering.lower`.

    Args:
        networks: of `networks_of`.
        duration_s: of a sound, in seconds.
        mesh: of `placement.mesh`.
        batch: sounds.
        num_steps: of the solver.
        guided: whether sounds are steered, away from one prompt for all.
        solver: of any noise levels.
        counted_only: as there.
    """
    return lowering.lower(
        networks,
        networks.latent_shape(duration_s),
        mesh,
        batch=batch,
        num_steps=num_steps,
        guided=guided,
        tokens=min(_TOKENS, networks.text_encoder.config.longest),
        solver=solver,
        counted_only=counted_only,
    )


def _find(path_or_id, revision) -> pathlib.Path:
    folder = folders.find(
        path_or_id,
        _COMPONENTS,
        lambda kind: kind == "AudioLDMPipeline",
        "AudioLDM pipeline of the first version: name another model, as "
        "'cvssp/audioldm'",
        revision,
    )
    index = folder / "model_index.json"
    if "vocoder" not in hub.read_json(index):
        raise UserError(f"{index}: names no vocoder: download the model again")
    return folder
