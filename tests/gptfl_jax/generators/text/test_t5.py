import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest
import sentencepiece
import small_t5
from sentencepiece import sentencepiece_model_pb2

from gptfl_jax.errors import UserError
from gptfl_jax.generators.text import t5, t5_tokenizer
from gptfl_jax.generators.text.decoding import Decoding
from gptfl_jax.generators.text.t5 import T5Config, T5Network
from gptfl_jax.generators.text.text_to_text import T5
from gptfl_jax.released import hub

SAMPLE = Decoding("sample", max_length=6)
TEXTS = ["a cat", "two dog and the bird", "hot"]
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def model():
    return small_t5.model()


# Against torch ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5_1_0", "t5_1_1"])
def test_logits_and_answers_equal_torch(name):
    """tests/parity has the other settings of beam search."""
    reference = ported_models.load(name)
    logits = ported_models.t5_logits(reference)
    assert ported_models.relative_error(logits, reference["logits"]) < 1e-4
    greedy = ported_models.t5_answers(reference, method="greedy")
    np.testing.assert_array_equal(greedy, reference["greedy"])
    beam = ported_models.t5_answers(
        reference, 3, method="beam", **ported_models.T5_BEAMS["long"]
    )
    np.testing.assert_array_equal(beam, reference["beam_long"])


@pytest.mark.parametrize(
    "options, count",
    [
        # t5-small, t5-base and google/t5-v1_1-base
        ({}, 60_506_624),
        (
            {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12},
            222_903_552,
        ),
        (
            {
                "d_model": 768,
                "d_ff": 2048,
                "num_heads": 12,
                "num_layers": 12,
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
            },
            247_577_856,
        ),
    ],
)
def test_number_of_parameters(options, count):
    shapes = t5.network_shapes(T5Network(T5Config(**options)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_buckets_by_hand():
    """8 buckets up to distance 16, one way: 0 to 3 alone, then 4-5, 6-7, 8-11, 12-."""
    column = t5.relative_buckets(20, 20, 8, 16, False)[:, 0]
    assert column.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, *[6] * 4, *[7] * 8]
    both = t5.relative_buckets(3, 3, 8, 16, True)
    assert both.tolist() == [[0, 5, 6], [1, 0, 5], [2, 1, 0]]


# The cache --------------------------------------------------------------------------


def test_tokens_one_by_one_equal_all_at_once(model):
    """Two answers to each text."""
    network, variables = model.network, {"params": model.params}
    random = np.random.RandomState(0)
    tokens = jnp.asarray(random.randint(4, len(small_t5.WORDS), (2, 5)))
    mask = jnp.asarray(np.arange(5) < np.array([[5], [3]]))
    answers = jnp.asarray(random.randint(4, len(small_t5.WORDS), (4, 7)))
    rows = np.array([0, 0, 1, 1])
    whole = jax.jit(network.apply)(variables, tokens[rows], mask[rows], answers)

    encode = jax.jit(lambda *inputs: network.apply(*inputs, method="encode"))
    text = encode(variables, tokens, mask)
    cache = network.empty_cache(4, 7)

    @jax.jit
    def step(token, position, cache):
        return network.apply(
            variables, token, position, cache, text, mask, method="decode"
        )

    for position in range(7):
        token = answers[:, position : position + 1]
        logits, cache = step(token, jnp.int32(position), cache)
        np.testing.assert_allclose(logits[:, 0], whole[:, position], atol=1e-4)


# What an answer depends on ----------------------------------------------------------


def test_an_answer_does_not_depend_on_the_other_texts(model):
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(KEY, i), 4))(
        jnp.arange(3)
    )
    together = model.generate(TEXTS, SAMPLE, key=keys, num_sequences=4)
    assert len({answer for answers in together for answer in answers}) > 8
    for i, text in enumerate(TEXTS):
        # Alone it is filled up to another length.
        alone = model.generate([text], SAMPLE, key=keys[i : i + 1], num_sequences=4)
        assert alone[0] == together[i]
    few = model.generate(TEXTS, SAMPLE, key=keys[:, :2], num_sequences=2)
    assert few == [answers[:2] for answers in together]


def test_one_key_gives_each_answer_its_own(model):
    fold = jax.random.fold_in
    keys = jnp.stack([jnp.stack([fold(fold(KEY, i), j) for j in (0, 1)]) for i in (0,)])
    one = model.generate(["a cat"], SAMPLE, key=KEY, num_sequences=2)
    assert one == model.generate(["a cat"], SAMPLE, key=keys, num_sequences=2)
    assert one[0][0] != one[0][1]


def test_padding_is_not_seen(model):
    tokens = np.array([[4, 5, 1, 0, 0], [4, 5, 1, 9, 9]])
    mask = np.array([[1, 1, 1, 0, 0]] * 2, bool)
    how = Decoding("greedy", max_length=8)
    answers = np.asarray(model.generate_tokens(tokens, mask, how))
    np.testing.assert_array_equal(answers[0], answers[1])
    seen = np.asarray(model.generate_tokens(tokens, np.ones_like(mask), how))
    assert (seen[1] != answers[1]).any()


def test_answers_are_words(model):
    answers = model.generate(TEXTS, SAMPLE, key=KEY, num_sequences=30)
    words = {word for each in answers for answer in each for word in answer.split()}
    assert words <= set(small_t5.WORDS) - {"<pad>", "</s>", "<unk>"}
    assert len(words) > 5


DEVICES = """
import sys
import jax, numpy as np
sys.path[:0] = sys.argv[1:3]
import small_t5
from gptfl_jax.generators.text.decoding import Decoding

jax.config.update("jax_disable_most_optimizations", True)
random = np.random.RandomState(0)
tokens = random.randint(4, 10, (10, 5))
for count in (1, 8):
    model = small_t5.model(devices=jax.local_devices()[:count])
    for name, texts, how, sequences in (
        ("texts", 10, Decoding("sample", max_length=6), 2),
        ("sequences", 1, Decoding("sample", max_length=6), 5),
        ("beam", 3, Decoding("beam", max_length=6), 4),
    ):
        answers = model.generate_tokens(
            tokens[:texts],
            np.ones((texts, 5), bool),
            how,
            key=jax.random.key(1),
            num_sequences=sequences,
        )
        np.save(f"{sys.argv[3]}/{name}_{count}.npy", answers)
"""


@pytest.mark.long
def test_the_number_of_devices_makes_no_difference(repository, tmp_path):
    """Ten texts, or five answers: on 8 devices either is filled up."""
    folders = [repository, repository / "tests" / "references", tmp_path]
    flags = "--xla_force_host_platform_device_count=8"
    subprocess.run(
        [sys.executable, "-c", DEVICES, *map(str, folders)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )
    shapes = {"texts": (10, 2, 6), "sequences": (1, 5, 6), "beam": (3, 4, 6)}
    for name, shape in shapes.items():
        one, eight = (np.load(tmp_path / f"{name}_{count}.npy") for count in (1, 8))
        assert one.shape == shape and len(np.unique(one)) > 5
        np.testing.assert_array_equal(eight, one)


# Bad arguments ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, options, message",
    [
        (SAMPLE, {}, "takes a key"),
        (SAMPLE, {"key": jax.random.split(KEY, 3)}, r"keys of shape \(3,\)"),
        (SAMPLE, {"key": KEY, "num_sequences": 0}, "num_sequences = 0"),
        (Decoding("greedy"), {"num_sequences": 2}, "takes 1 to 1 with method greedy"),
        (Decoding("beam"), {"num_sequences": 5}, "takes 1 to 4 with method beam"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(model, how, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(TEXTS, how, **options)


def test_texts_are_a_list(model):
    for texts in ("a cat", []):
        with pytest.raises(ValueError, match="takes a list of at least one text"):
            model.generate(texts, SAMPLE, key=KEY)


def test_a_tokenizer_of_another_model_is_refused(model):
    small = small_t5.model(vocab_size=5)
    with pytest.raises(UserError, match="belong to different models"):
        small.generate(["a bird"], SAMPLE, key=KEY)


def test_an_unknown_activation_is_refused():
    with pytest.raises(UserError, match="feed_forward_proj = 'gelu'"):
        T5Config(feed_forward_proj="gelu")


# Files ------------------------------------------------------------------------------


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_equal_params(one, other):
    chex.assert_trees_all_equal(one.params, other.params)


@pytest.mark.parametrize(
    "options",
    [{}, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}],
    ids=["1.0", "1.1"],
)
def test_a_saved_model_is_the_same(options, tmp_path):
    model = small_t5.model(**options, num_decoder_layers=2)
    model.save_pretrained(tmp_path)
    again = T5.from_pretrained(tmp_path)
    assert_equal_params(again, model)
    how = Decoding("greedy", max_length=6)
    assert again.generate(TEXTS, how) == model.generate(TEXTS, how)


def test_bfloat16_follows_float32(model, folder):
    half = T5.from_pretrained(folder, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    tokens, mask = jnp.array([[4, 5, 1]]), jnp.ones((1, 3), bool)
    answers = jnp.array([[0, 6, 7, 8]])

    def logits(model):
        apply = jax.jit(model.network.apply)
        return apply({"params": model.params}, tokens, mask, answers)

    assert logits(half).dtype == jnp.float32
    assert 0 < ported_models.relative_error(logits(half), logits(model)) < 0.05


def change_weights(folder, change):
    weights = hub.read_weights(folder / "model.safetensors")
    change(weights)
    hub.write_weights(folder / "model.safetensors", weights)


def test_older_files_are_understood(model, folder):
    """They hold the embeddings four times, and biases that nothing uses."""

    def change(weights):
        shared = weights["shared.weight"]
        for copy in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"):
            weights[f"{copy}.weight"] = shared.copy()
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        weights[name] = np.ones((32, 2), np.float32)

    change_weights(folder, change)
    assert_equal_params(T5.from_pretrained(folder), model)
    change_weights(folder, lambda weights: weights.pop("shared.weight"))
    again = T5.from_pretrained(folder)
    assert again.network.config.tie_word_embeddings
    assert_equal_params(again, model)


def test_a_repository_is_loaded_in_its_best_form(model, folder, monkeypatch, tmp_path):
    """Of which nothing else is downloaded; and one with weights for PyTorch alone."""
    cache, downloaded = tmp_path / "cache", []

    def snapshot_download(name, *, revision, allow_patterns, repo_type):
        assert (name, revision, repo_type) == ("owner/model", None, "model")
        for file in folder.iterdir():
            wanted = any(fnmatch.fnmatch(file.name, p) for p in allow_patterns)
            if wanted and not (cache / file.name).exists():
                cache.mkdir(exist_ok=True)
                shutil.copy(file, cache / file.name)
                downloaded.append(file.name)
        return cache

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    needed = {file.name for file in folder.iterdir()}
    for extra in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (folder / extra).write_bytes(b"not to be read")
    assert_equal_params(T5.from_pretrained("owner/model"), model)
    assert set(downloaded) == needed
    shutil.rmtree(cache)
    (folder / "model.safetensors").unlink()
    with pytest.raises(hub.BadWeights, match="pytorch_model.bin: damaged"):
        T5.from_pretrained("owner/model")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("own_head", [True, False])
@pytest.mark.parametrize("scaled", [None, True, False])
def test_the_output_layer_is_that_of_the_weights(tied, own_head, scaled):
    """Whatever the config says of it; what it says scales the outputs."""
    config = T5Config(tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    weights = {"shared.weight": np.ones((3, 2), np.float32)}
    if own_head:
        weights["lm_head.weight"] = np.zeros((3, 2), np.float32)
    config, current = t5.current_weights(config, weights)
    assert config.tie_word_embeddings is not own_head
    assert current.keys() == weights.keys()
    assert config.scale_decoder_outputs is (tied if scaled is None else scaled)


def test_config_survives_its_file():
    config = T5Config(d_model=16, feed_forward_proj="gated-silu", num_decoder_layers=3)
    again = T5Config.from_json(config.to_json())
    assert again == T5Config(
        d_model=16,
        feed_forward_proj="gated-silu",
        num_decoder_layers=3,
        decoder_start_token_id=0,
    )


def test_a_model_of_another_kind_is_refused(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "bart"}))
    with pytest.raises(UserError, match="config.json: model_type = 'bart'"):
        T5.from_pretrained(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("model_type", [{"model_type": "t5"}, {}])
def test_code_in_a_folder_is_neither_run_nor_asked_about(
    file, model_type, folder, tmp_path, monkeypatch
):
    trap = tmp_path / "was_here"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(trap)!r})\n")
    path = folder / "config.json"
    options = json.loads(path.read_text())
    options.pop("model_type", None)
    path.write_text(json.dumps(options | model_type))
    code = {
        "config.json": {"AutoConfig": "evil.Config"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]},
    }
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": code[file]}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("signal.alarm", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match=f"{file}: auto_map asks for Python code"):
        T5.from_pretrained(folder)
    assert not trap.exists()


@pytest.mark.parametrize(
    "file, message",
    [
        ("config.json", "config.json: missing"),
        ("model.safetensors", "holds none of model.safetensors, model.bin, pytorch_m"),
        ("tokenizer.json", "holds no tokenizer.json or spiece.model"),
    ],
)
def test_a_missing_file_is_named(folder, file, message):
    (folder / file).unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        T5.from_pretrained(folder)


def vocabulary_file(path):
    """As SentencePiece writes it, with the 15 other words as whole pieces."""
    words = [f"\u2581{word}" for word in small_t5.WORDS[4:]]
    pieces = ["<pad>", "</s>", "<unk>", *words, *"abcdefgr"]
    model = sentencepiece_model_pb2.ModelProto()
    for number, piece in enumerate(pieces):
        kind = {0: "CONTROL", 1: "CONTROL", 2: "UNKNOWN"}.get(number, "NORMAL")
        score = 0.0 if number < 3 else -1.0 - number / 100
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.unk_id = 2
    model.normalizer_spec.name = "identity"
    path.write_bytes(model.SerializeToString())
    return len(pieces)


def test_vocabularies_of_sentencepiece_are_read(folder):
    """The sentinels follow the pieces, the last one first."""
    for file in folder.glob("tokenizer*"):
        file.unlink()
    count = vocabulary_file(folder / "spiece.model")
    tokenizer = t5_tokenizer.load_tokenizer(folder)
    tokens = tokenizer("two red bird <extra_id_99> <extra_id_0>").input_ids
    words = small_t5.WORDS
    expected = [words.index(word) - 1 for word in ("two", "red", "bird")]
    assert tokens == [*expected, count, count + 99, 1]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "two red bird"
    pieces, charsmap = t5_tokenizer.read_sentencepiece(folder / "spiece.model")
    assert pieces[3] == ("\u2581a", pytest.approx(-1.03)) and charsmap == b""


@pytest.mark.parametrize("content", [b"", b"\x0a", b"\x0a\x05abc", b"\xff" * 9, b"{}"])
def test_damaged_vocabularies_are_refused(content, folder):
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(content)
    with pytest.raises(UserError, match="spiece.model: its tokenizer is damaged"):
        T5.from_pretrained(folder)


def test_a_protobuf_that_is_too_old_is_named(tmp_path, monkeypatch):
    vocabulary_file(tmp_path / "spiece.model")
    monkeypatch.setitem(sys.modules, sentencepiece_model_pb2.__name__, None)
    monkeypatch.delattr(sentencepiece, "sentencepiece_model_pb2")
    with pytest.raises(UserError, match="spiece.model: .*--upgrade protobuf"):
        t5_tokenizer.load_tokenizer(tmp_path)
