"""Tokens of words, and what a discriminator hears."""

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
