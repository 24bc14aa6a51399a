"""PyTorch's side of the comparisons of AudioLDM, as `torch_references` has the others'.

Run as a program it writes the recorded references beside this file.
"""

from functools import partial

import diffusers
import numpy as np
import torch
import torch_references
import transformers
from torch_references import channels_first, channels_last, filled, normal, plain

# What the files of cvssp/audioldm say, but for what has no effect on the networks.
RELEASE = {
    "unet": {
        "sample_size": 128,
        "in_channels": 8,
        "out_channels": 8,
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        "block_out_channels": (128, 256, 384, 640),
        "layers_per_block": 2,
        "cross_attention_dim": (128, 256, 384, 640),
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 512,
        "class_embeddings_concat": True,
    },
    "vae": {
        "in_channels": 1,
        "out_channels": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (128, 256, 512),
        "layers_per_block": 2,
        "latent_channels": 8,
        "scaling_factor": 0.9227914214134216,
    },
    "text_encoder": {},
    "vocoder": {
        "model_in_dim": 64,
        "sampling_rate": 16000,
        "upsample_initial_channel": 1024,
        "upsample_rates": [5, 4, 2, 2, 2],
        "upsample_kernel_sizes": [16, 16, 8, 4, 4],
        "normalize_before": False,
    },
}

# The same kinds of blocks in small; the first level has no attention.
SMALL = {
    "unet": RELEASE["unet"]
    | {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "cross_attention_dim": (8, 16),
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "projection_class_embeddings_input_dim": 12,
    },
    "vae": RELEASE["vae"]
    | {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 2,
    },
    "text_encoder": {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "projection_dim": 12,
    },
    "vocoder": RELEASE["vocoder"]
    | {
        "model_in_dim": 8,
        "upsample_initial_channel": 8,
        "upsample_rates": [5, 4],
        "upsample_kernel_sizes": [16, 16],
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3]],
    },
}
SCHEDULER = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def networks(options) -> dict[str, torch.nn.Module]:
    return {
        "text_encoder": transformers.ClapTextModelWithProjection(
            transformers.ClapTextConfig(**options["text_encoder"])
        ),
        "unet": diffusers.UNet2DConditionModel(**options["unet"]),
        "vae": diffusers.AutoencoderKL(**options["vae"]),
        "vocoder": transformers.SpeechT5HifiGan(
            torch_references.vocoder_config(options["vocoder"])
        ),
    }


def fill_network(network: torch.nn.Module) -> torch.nn.Module:
    """`filled`, but what is no weight (the positions 0, 1, 2, ...) stays."""
    kept = {n: v for n, v in network.state_dict().items() if not v.is_floating_point()}
    weights = {
        name: torch.from_numpy(torch_references.fill(name, tuple(value.shape)))
        for name, value in network.state_dict().items()
        if name not in kept
    }
    network.load_state_dict(weights | kept)
    return network.eval()


def shapes(network: torch.nn.Module) -> dict:
    return {
        name: list(value.shape)
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }


def prompts_as_tokens(config, rows=4, longest=9) -> np.ndarray:
    """Tokens of prompts of several lengths, filled up."""
    random = np.random.RandomState(11)
    tokens = random.randint(3, config.vocab_size, (rows, longest))
    lengths = np.array([3, longest, 5, 2])[:rows]
    return np.where(np.arange(longest) < lengths[:, None], tokens, config.pad_token_id)


def embeddings(network, tokens) -> torch.Tensor:
    """What the pipeline of diffusers makes of tokens."""
    tokens = torch.tensor(tokens)
    mask = (tokens != network.config.pad_token_id).long()
    embedded = network(tokens, attention_mask=mask).text_embeds
    return torch.nn.functional.normalize(embedded, dim=-1)


@torch.no_grad()
def clap_text(options) -> dict:
    network = fill_network(networks(SMALL | {"text_encoder": options})["text_encoder"])
    tokens = prompts_as_tokens(network.config)
    return {
        "config": plain(network.config),
        "weights": shapes(network),
        "tokens": tokens,
        "output": embeddings(network, tokens).numpy(),
    }


@torch.no_grad()
def unet(options, height=6, width=3) -> dict:
    network = filled(diffusers.UNet2DConditionModel(**options))
    latents = normal(0, 2, height, width, options["in_channels"])
    timesteps = np.array([3, 981])
    classes = normal(1, 2, options["projection_class_embeddings_input_dim"])
    output = network(
        channels_first(latents),
        torch.tensor(timesteps),
        None,
        class_labels=torch.from_numpy(classes),
    ).sample
    return {
        "config": plain(network.config),
        "weights": shapes(network),
        "latents": latents,
        "timesteps": timesteps,
        "classes": classes,
        "output": channels_last(output),
    }


@torch.no_grad()
def vae(options) -> dict:
    network = filled(diffusers.AutoencoderKL(**options))
    mels = normal(2, 2, 12, 8, 1)
    distribution = network.encode(channels_first(mels)).latent_dist
    return {
        "config": plain(network.config),
        "weights": shapes(network),
        "images": mels,
        "mean": channels_last(distribution.mean),
        "log_variance": channels_last(distribution.logvar),
        "decoded": channels_last(network.decode(distribution.mean).sample),
    }


@torch.no_grad()
def pipeline(options, scheduler="DDIMScheduler", steps=5, frames=11) -> dict:
    """A whole pipeline; tokens' row 0 is the empty prompt, the others a batch."""
    parts = {n: fill_network(network) for n, network in networks(options).items()}
    noise = getattr(diffusers, scheduler)(**SCHEDULER if "DDIM" in scheduler else {})
    pipe = diffusers.AudioLDMPipeline(**parts, tokenizer=None, scheduler=noise)
    pipe.set_progress_bar_config(disable=True)
    tokens = prompts_as_tokens(parts["text_encoder"].config)
    embedded = embeddings(parts["text_encoder"], tokens)
    count = len(tokens) - 1
    per_frame = int(np.prod(options["vocoder"]["upsample_rates"]))
    seconds = frames * per_frame / options["vocoder"]["sampling_rate"]
    rows = -(-frames // 2)
    latents = normal(7, count, rows, options["vocoder"]["model_in_dim"] // 2, 4)

    def waves(guidance_scale):
        return pipe(
            prompt_embeds=embedded[1:],
            negative_prompt_embeds=embedded[:1].repeat(count, 1),
            latents=channels_first(latents),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            audio_length_in_s=seconds,
        ).audios

    return {
        "configs": {name: plain(part.config) for name, part in parts.items()}
        | {"scheduler": plain(noise.config) | {"_class_name": scheduler}},
        "weights": {name: shapes(part) for name, part in parts.items()},
        "tokens": tokens,
        "latents": latents,
        "num_steps": np.array(steps),
        "duration_s": np.array(seconds),
        "waves_1": waves(1.0),
        "waves_2.5": waves(2.5),
    }


CASES = {
    "clap_text": partial(clap_text, SMALL["text_encoder"]),
    "unet_audioldm": partial(unet, SMALL["unet"]),
    "vae_mel": partial(vae, SMALL["vae"]),
    "pipeline_audioldm": partial(pipeline, SMALL),
}


if __name__ == "__main__":
    torch_references.record(CASES)
