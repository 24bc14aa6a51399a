"""Words without tokens, for tokenizers of words, letters and bytes."""

import pytest
import tokenizers
import transformers

from gptfl_jax.generators.vocabulary import unknown_words


def fast(model, pre_tokenizer=None, **special):
    tokenizer = tokenizers.Tokenizer(model)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def of_letters():
    known = {letter: n for n, letter in enumerate(["<unk>", *"abcdefgh"])}
    model = tokenizers.models.WordLevel(known, unk_token="<unk>")
    split = tokenizers.pre_tokenizers.Split("", "isolated")
    return fast(model, split, unk_token="<unk>")


def of_bytes():
    """As CLIP's: an accented letter has a token of its own, a Chinese one has three."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    known = {letter: n for n, letter in enumerate(sorted(letters))}
    known["Ã©"] = len(known)  # the two bytes of é
    model = tokenizers.models.BPE(known, [("Ã", "©")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def with_byte_fallback():
    """As those of Llama and mT5."""
    known = {"<unk>": 0, "a": 1, "b": 2}
    known |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    model = tokenizers.models.BPE(known, [], unk_token="<unk>", byte_fallback=True)
    return fast(model, unk_token="<unk>")


@pytest.mark.parametrize(
    ("make", "words", "unknown"),
    [
        (of_letters, ["bead", "zebra", "0", "face"], ["zebra", "0"]),
        (of_bytes, ["cat", "café", "猫", "0"], ["猫"]),
        (with_byte_fallback, ["ab", "é"], ["é"]),
        (of_letters, [], []),
    ],
)
def test_words_that_have_no_tokens(make, words, unknown):
    assert unknown_words(make(), words) == unknown
