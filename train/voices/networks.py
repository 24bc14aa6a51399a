"""The networks of the small voices, and their tokenizer."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32
from ml_collections import ConfigDict

from gptfl_jax import artifacts
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ
from gptfl_jax.generators.speech.speecht5 import SpeechT5Config, SpeechT5ForTextToSpeech


def make_tokenizer(words: Sequence[str], folder: pathlib.Path) -> Any:
    """A `SpeechT5Tokenizer` of letters, written to `folder`.

    Capitals are read as small letters.
    """
    import sentencepiece
    from transformers import SpeechT5Tokenizer

    text = [*words, "abcdefghijklmnopqrstuvwxyz", "don't"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="char",
        character_coverage=1.0,
        # 4 special tokens, the letters, the apostrophe, the beginning of a word.
        vocab_size=4 + 26 + 2,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    path = folder / "spm_char.model"
    artifacts.write_bytes(path, model.getvalue())
    return SpeechT5Tokenizer(str(path))


def token_table(
    tokenizer: Any, words: Sequence[str], padding: int
) -> Int32[np.ndarray, "words tokens"]:
    """Tokens of each word, filled up with `padding`."""
    rows = tokenizer(list(words)).input_ids
    table = np.full((len(rows), max(map(len, rows))), padding, np.int32)
    for row, filled in zip(rows, table, strict=True):
        filled[: len(row)] = row
    return table


def make_model(settings: ConfigDict, tokenizer: Any) -> SpeechT5ForTextToSpeech:
    """The speech model in the sizes of the config."""
    features = settings.features
    return SpeechT5ForTextToSpeech(
        SpeechT5Config(
            vocab_size=len(tokenizer),
            hidden_size=features,
            encoder_layers=settings.encoder_layers,
            encoder_attention_heads=4,
            encoder_ffn_dim=4 * features,
            encoder_max_relative_position=16,
            decoder_layers=settings.decoder_layers,
            decoder_attention_heads=4,
            decoder_ffn_dim=4 * features,
            pad_token_id=tokenizer.pad_token_id,
            speech_decoder_prenet_units=features,
            speaker_embedding_dim=settings.speaker_features,
            speech_decoder_postnet_units=settings.postnet_features,
            reduction_factor=settings.reduction_factor,
            max_speech_positions=500,
            max_text_positions=100,
        )
    )


def make_vocoder(settings: ConfigDict) -> HifiGan:
    """The vocoder in the sizes of the config."""
    return HifiGan(
        HifiGanConfig(
            sampling_rate=SAMPLE_RATE_HZ,
            upsample_initial_channel=settings.vocoder_channels,
            upsample_rates=(8, 8, 4),
            upsample_kernel_sizes=(16, 16, 8),
            resblock_kernel_sizes=(3, 7),
            resblock_dilation_sizes=((1, 3), (1, 3)),
        )
    )
