"""T5 against live PyTorch: logits, answers, files and tokenizers."""

import re

import jax.numpy as jnp
import numpy as np
import ported_models
import pytest
import sentencepiece
import small_t5
import torch
import torch_references
import transformers
from ported_models import FOLDER
from transformers.generation import logits_process

from gptfl_jax.generators.text import decoding, t5, t5_tokenizer
from gptfl_jax.generators.text.text_to_text import T5


@pytest.fixture(scope="module", params=["t5_1_0", "t5_1_1"])
def reference(request):
    return torch_references.CASES[request.param]()


def test_logits(reference):
    """Texts and answers longer than the distances that have buckets of their own."""
    logits = ported_models.t5_logits(reference)
    assert ported_models.relative_error(logits, reference["logits"]) < 1e-5


def test_greedy(reference):
    answers = ported_models.t5_answers(reference, method="greedy")
    np.testing.assert_array_equal(answers, reference["greedy"])


@pytest.mark.parametrize("name", ported_models.T5_BEAMS)
def test_beam_search(reference, name):
    answers = ported_models.t5_answers(
        reference, 3, method="beam", **ported_models.T5_BEAMS[name]
    )
    np.testing.assert_array_equal(answers, reference[f"beam_{name}"])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, most", [(32, 128), (32, 64), (16, 20), (8, 128)])
def test_buckets(buckets, most, bidirectional):
    offset = torch.arange(600)[None] - torch.arange(600)[:, None]
    attention = transformers.models.t5.modeling_t5.T5Attention
    expected = attention._relative_position_bucket(offset, bidirectional, buckets, most)
    found = t5.relative_buckets(600, 600, buckets, most, bidirectional)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (0, 0.4), (0, 0.9), (5, 0.7)])
def test_the_likeliest_tokens(top_k, top_p):
    logits = torch_references.normal(1, 50, 30) * 2
    expected = torch.tensor(logits)
    if top_k:
        expected = logits_process.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = logits_process.TopPLogitsWarper(top_p)(None, expected)
    found = decoding.keep_likeliest(jnp.asarray(logits), top_k, top_p)
    np.testing.assert_array_equal(found, expected.numpy())


# Files ------------------------------------------------------------------------------


def torch_answers(model, tokenizer, texts):
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    rows = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return [[text] for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


TEXTS = ["a cat", "two dog and the bird"]
GREEDY = decoding.Decoding("greedy", max_length=6)


@pytest.mark.parametrize("options", [{}, {"feed_forward_proj": "gated-gelu"}], ids=str)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_folders_of_transformers_load(options, form, tmp_path):
    options = torch_references.T5 | options | {"vocab_size": len(small_t5.WORDS)}
    options["tie_word_embeddings"] = "feed_forward_proj" not in options
    model, _ = torch_references.t5_model(options)
    model.save_pretrained(tmp_path)
    tokenizer = small_t5.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    ours = T5.from_pretrained(tmp_path)
    assert ours.network.config.tie_word_embeddings is options["tie_word_embeddings"]
    answers = ours.generate(TEXTS, GREEDY)
    assert answers == torch_answers(model, tokenizer, TEXTS)
    assert answers[0] != answers[1]


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_what_we_save(tied, tmp_path):
    ours = small_t5.model(
        tie_word_embeddings=tied,
        feed_forward_proj="relu" if tied else "gated-gelu",
    )
    ours.save_pretrained(tmp_path)
    model, info = transformers.T5ForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = torch_answers(model, tokenizer, TEXTS)
    assert ours.generate(TEXTS, GREEDY) == expected


def test_vocabularies_of_sentencepiece(tmp_path):
    """Trained and written by SentencePiece itself; tokens are those it gives."""
    text = tmp_path / "text"
    # Runs of one sign can be cut up in several equally likely ways.
    lines = (FOLDER / "torch_references.py").read_text().splitlines()
    sentences = [line for line in lines if re.fullmatch(r"[A-Za-z ,.()=]{20,}", line)]
    text.write_text("\n".join(sentences))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=90,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    reader = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    pieces, charsmap = t5_tokenizer.read_sentencepiece(tmp_path / "spiece.model")
    assert pieces == [
        (reader.id_to_piece(i), reader.get_score(i)) for i in range(len(reader))
    ]
    assert len(charsmap) > 1000
    tokenizer = t5_tokenizer.load_tokenizer(tmp_path)
    converted = transformers.T5Tokenizer.from_pretrained(tmp_path)
    for sentence in (
        *sentences[:80],
        "  an \uff21irplane\u00a0 is ",
        "\u00e9t\u00e9 \u4e2d",
    ):
        tokens = tokenizer(sentence).input_ids
        assert tokens == [*reader.encode(sentence), 1], sentence
        assert tokens == converted(sentence).input_ids
        assert tokenizer.decode(tokens) == converted.decode(tokens)
    for sentinel in ("<extra_id_0>", "<extra_id_99>"):
        assert tokenizer(sentinel).input_ids == converted(sentinel).input_ids
