"""Tokens of words, and what a discriminator hears."""

import jax
import jax.numpy as jnp

from train.voices import networks


def test_the_tokenizer_knows_letters(tmp_path):
    from transformers import SpeechT5Tokenizer

    tokenizer = networks.make_tokenizer(("seven", "three"), tmp_path)
    tokens = tokenizer("seven").input_ids
    assert len(set(tokens[1:6])) == 4  # s, e, v, e, n
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer("Seven").input_ids == tokens
    assert tokenizer.unk_token_id not in tokenizer("the quick brown jazz fox").input_ids
    assert tokenizer.unk_token_id in tokenizer("7").input_ids
    loaded = SpeechT5Tokenizer(str(tmp_path / "spm_char.model"))
    assert loaded("three").input_ids == tokenizer("three").input_ids
    table = networks.token_table(tokenizer, ("on", "seven"), 1)
    assert table[1].tolist() == tokens
    assert table[0].tolist() == [*tokenizer("on").input_ids, 1, 1, 1]


def test_a_discriminator_sees_periods():
    """Clips that differ by one sample in `period` differ in its rows alone."""
    rival = networks.Discriminator(features=(2,))
    wave = jax.random.normal(jax.random.key(0), (1, 210))
    params = rival.init(jax.random.key(1), wave)
    judgements, values = rival.apply(params, wave)
    assert [len(x) for x in judgements] == [2, 3, 5, 7]
    assert [x.shape[1] for x in judgements] == [105, 70, 42, 30]
    assert len(values) == 4
    changed, _ = rival.apply(params, wave.at[0, 4::5].add(1.0))
    differ = jnp.abs(changed[2] - judgements[2]).max((1, 2))
    assert (differ > 0).tolist() == [False] * 4 + [True]
