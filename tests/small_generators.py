"""Generators so small that a program can be run and killed many times."""

import io
import pathlib
import types
import zipfile
from typing import Any

import jax
import numpy as np
import tokenizers
import transformers

from gptfl_jax.generators.diffusion.solvers import DPMSolver
from gptfl_jax.generators.diffusion.unet import UNet2DCondition, UNetConfig
from gptfl_jax.generators.diffusion.vae import AutoencoderKL, VAEConfig
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig, CLIPTextModel
from gptfl_jax.generators.pictures.sampling import Networks
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.generators.speech import hifigan, speecht5
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.generators.speech.speecht5 import SpeechT5Config, SpeechT5ForTextToSpeech
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech


def words_tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = ["<end>", "<start>", "<unknown>", "a", "photo", "of"]
    words += ["bird", "hot", "dog", "cat", "drawing"]
    model = tokenizers.models.WordLevel(
        {word: number for number, word in enumerate(words)}, unk_token="<unknown>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unknown>",
        pad_token="<end>",
        model_max_length=8,
    )


def knows_every_word(words: list[str], **_: Any) -> Any:
    """A tokenizer of one token, which stands for every word."""
    return types.SimpleNamespace(input_ids=[[0] for _ in words])


def _weights(shapes: Any, seed: int) -> Any:
    generator = np.random.default_rng(seed)

    def weight(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        spread = 1 / np.sqrt(max(1, np.prod(shape.shape[:-1])))
        return generator.normal(0, spread, shape.shape).astype(np.float32)

    return jax.tree.map(weight, shapes)


def save_stable_diffusion(folder: pathlib.Path, seed: int) -> None:
    """Saves a pipeline with random weights that makes 8x8 images."""
    text = CLIPTextConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        hidden_act="gelu",
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
    )
    unet = UNetConfig(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = VAEConfig(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
    )
    networks = Networks(CLIPTextModel(text), UNet2DCondition(unet), AutoencoderKL(vae))
    params = _weights(networks.shapes(), seed)
    StableDiffusion(networks, params, words_tokenizer(), DPMSolver()).save_pretrained(
        folder
    )


def _characters() -> transformers.PreTrainedTokenizerFast:
    characters = ["<s>", "<pad>", "</s>", "<unk>", " ", *"abcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.models.WordLevel(
        {character: number for number, character in enumerate(characters)},
        unk_token="<unk>",
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save_speech(folder: pathlib.Path) -> None:
    """Saves a SpeechT5 (model/), a vocoder (vocoder/) and three speakers."""
    model = SpeechT5ForTextToSpeech(
        SpeechT5Config(
            vocab_size=31,
            hidden_size=8,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=8,
            encoder_max_relative_position=4,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=8,
            num_mel_bins=4,
            speech_decoder_prenet_units=8,
            speaker_embedding_dim=4,
            speech_decoder_postnet_layers=2,
            speech_decoder_postnet_units=8,
        )
    )
    vocoder = HifiGan(
        HifiGanConfig(
            model_in_dim=4,
            upsample_initial_channel=8,
            upsample_rates=(8, 4),
            upsample_kernel_sizes=(16, 8),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1,),),
            normalize_before=False,
        )
    )
    variables = {
        "model": _weights(speecht5.shapes(model), 1),
        "vocoder": _weights(hifigan.shapes(vocoder), 2),
    }
    statistics = variables["model"]["batch_stats"]
    variables["model"]["batch_stats"] = jax.tree.map(np.exp, statistics)
    pipeline = TextToSpeech(model, vocoder, variables, _characters())
    pipeline.save_pretrained(folder / "model", folder / "vocoder")
    with zipfile.ZipFile(folder / "speakers.zip", "w") as archive:
        for number in range(3):
            file = io.BytesIO()
            vector = np.random.default_rng(number).normal(size=4)
            np.save(file, vector.astype(np.float32))
            archive.writestr(f"vectors/{number}.npy", file.getvalue())
