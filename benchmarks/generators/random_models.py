"""Networks of PyTorch with random weights, in the sizes of releases."""

import sys
from collections.abc import Callable
from typing import Any

from gptfl_jax.released import hub


def make_model(name: str, folder: str) -> None:
    """Writes a PyTorch network with random weights, in a released size."""
    import torch

    torch.manual_seed(0)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    _MODELS[name]().save_pretrained(folder)


def _make_clip():
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
    )
    return transformers.CLIPTextModel(config)


def _make_t5():
    import transformers

    config = transformers.T5Config(
        d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight.data *= 4  # As they are made, it repeats one token.
    return model


def _make_unet():
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )


def _make_vae():
    import diffusers

    return diffusers.AutoencoderKL(
        sample_size=768,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _make_speecht5():
    import transformers

    return transformers.SpeechT5ForTextToSpeech(transformers.SpeechT5Config())


def _make_hifigan():
    import transformers

    return transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig())


def _make_clap():
    import transformers

    return transformers.ClapTextModelWithProjection(transformers.ClapTextConfig())


def _make_sound_unet():
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=128,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        block_out_channels=(128, 256, 384, 640),
        cross_attention_dim=(128, 256, 384, 640),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )


def _make_sound_vae():
    import diffusers

    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def _make_vocoder():
    import transformers

    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=1024,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
    return transformers.SpeechT5HifiGan(config)


def _make_sd():
    import diffusers
    import transformers

    shipped = hub.ASSETS / "glyphs"
    solver = diffusers.DPMSolverMultistepScheduler
    return diffusers.StableDiffusionPipeline(
        text_encoder=_make_clip(),
        unet=_make_unet(),
        vae=_make_vae(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(shipped / "tokenizer"),
        scheduler=solver.from_pretrained(shipped / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


_MODELS: dict[str, Callable[[], Any]] = {
    "sd": _make_sd,
    "clap": _make_clap,
    "sound_unet": _make_sound_unet,
    "sound_vae": _make_sound_vae,
    "vocoder": _make_vocoder,
    "clip": _make_clip,
    "t5": _make_t5,
    "unet": _make_unet,
    "vae": _make_vae,
    "speecht5": _make_speecht5,
    "hifigan": _make_hifigan,
}


if __name__ == "__main__":
    make_model(*sys.argv[1:])
