"""Tokens of prompts."""

import numpy as np
import pytest

from train.glyphs import networks, prompts


@pytest.fixture(scope="module")
def tokenizer():
    return networks.prompt_tokenizer()


def test_every_word_of_the_prompts_is_one_token(tokenizer):
    prompt = prompts.prompt(
        7, "chalk", "medium", "tilted", "light", "filling the frame"
    )
    assert tokenizer.tokenize(prompt) == [
        f"{word}</w>" for word in prompt.replace(",", " ,").split()
    ]


def test_no_prompt_is_cut(tokenizer):
    table = networks.token_table(tokenizer)
    assert table.shape == (13441, networks.PROMPT_TOKENS)
    assert (table[:, 0] == tokenizer.bos_token_id).all()
    assert (table[:, -1] == tokenizer.eos_token_id).all()
    assert len(np.unique(table, axis=0)) == len(table)
    empty = [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 19
    assert table[-1].tolist() == empty


def test_tokens_decode_to_the_prompt(tokenizer):
    for prompt in prompts.all_prompts()[::997]:
        tokens = tokenizer(prompt)["input_ids"]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert " ".join(text.replace(",", " , ").split()) == prompt.replace(",", " ,")


def test_any_text_has_tokens(tokenizer):
    tokens = tokenizer("Zebra, naïve 42!")["input_ids"]
    assert tokenizer.eos_token_id not in tokens[1:-1]
    assert tokenizer.decode(tokens, skip_special_tokens=True).startswith("zebra")


def test_saved_tokenizers_are_the_same(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == networks.PROMPT_TOKENS
    text = ["a chalk digit nine, small", "unknown words", ""]
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
