"""Tokens of prompts, and networks that fit together."""

import numpy as np
import pytest

from gptfl_jax import configuration, launch
from gptfl_jax.errors import ConfigError
from train.drums import networks, prompts


@pytest.fixture(scope="module")
def tokenizer():
    return networks.make_tokenizer()


def test_every_word_of_the_prompts_is_one_token(tokenizer):
    assert tokenizer.tokenize("bright short acoustic snare drum") == [
        *("bright", "Ġshort", "Ġacoustic", "Ġsnare", "Ġdrum")
    ]
    assert tokenizer.tokenize("long hi-hat") == ["long", "Ġhi", "-", "hat"]


def test_no_prompt_is_cut(tokenizer):
    table = networks.token_table(tokenizer)
    assert table.shape == (6 * 27 + 1, networks.PROMPT_TOKENS)
    assert (table[:, 0] == tokenizer.bos_token_id).all()
    assert ((table == tokenizer.eos_token_id).sum(1) == 1).all()
    assert (table[:, -1] == tokenizer.pad_token_id).all()
    assert tokenizer.unk_token_id not in table
    assert len(np.unique(table, axis=0)) == len(table)
    assert table[-1, :3].tolist() == [0, 2, 1]
    text = tokenizer.decode(table[5], skip_special_tokens=True)
    assert text == prompts.all_prompts()[5]


def test_any_text_has_tokens(tokenizer):
    tokens = tokenizer("Zebra, naïve 42!")["input_ids"]
    assert tokenizer.unk_token_id not in tokens
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    assert text == "Zebra, naïve 42!"


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    from transformers import RobertaTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = RobertaTokenizer.from_pretrained(tmp_path)
    texts = [*prompts.all_prompts()[::20], "", "crash!"]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert loaded.model_max_length == networks.PROMPT_TOKENS


def test_networks_fit_together(tokenizer):
    settings = launch.read_config("drums").text_to_sound
    parts = networks.make_networks(settings, tokenizer, 2.0)
    parts.check()
    assert parts.latent_shape(1.024) == (4, 8, settings.latent_channels)
    assert parts.num_samples(1.024) == 16_384
    assert parts.vae.config.scaling_factor == 2.0


def test_sizes_that_do_not_fit_are_refused():
    config = launch.read_config("drums")
    config.text_to_sound.unet_channels = (16,) * 5
    with pytest.raises(ConfigError, match="vae_channels = .*halved once for each"):
        configuration.validate(config)
    config = launch.read_config("drums")
    config.text_to_sound.segment_frames = 36
    with pytest.raises(ConfigError, match="segment_frames = 36: takes at most the 32"):
        configuration.validate(config)
