"""HiFi-GAN, SpeechT5 and the pipeline against live PyTorch."""

import jax
import numpy as np
import ported_models
import pytest
import torch
import torch_references
import transformers

from gptfl_jax.generators.speech import hifigan, speecht5
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech

CASES = torch_references.CASES


def named(prefix):
    return [name for name in CASES if name.startswith(prefix)]


@pytest.mark.parametrize("name", named("vocoder"))
def test_vocoder(name):
    reference = CASES[name]()
    waves = ported_models.vocoder_waves(reference)
    assert ported_models.relative_error(waves, reference["waves"]) < 1e-4


@pytest.mark.parametrize("name", named("speech"))
def test_speech(name):
    ported_models.check_speech(CASES[name]())


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_weights_of_the_released_sizes():
    """The names and shapes of PyTorch, and its numbers of parameters."""
    for network, shapes, to_torch, kind, config, count in (
        (
            speecht5.SpeechT5ForTextToSpeech(speecht5.SpeechT5Config()),
            speecht5.shapes,
            speecht5.to_torch,
            transformers.SpeechT5ForTextToSpeech,
            transformers.SpeechT5Config(),
            144_431_684,
        ),
        (
            hifigan.HifiGan(hifigan.HifiGanConfig()),
            hifigan.shapes,
            hifigan.to_torch,
            transformers.SpeechT5HifiGan,
            transformers.SpeechT5HifiGanConfig(),
            12_656_257,
        ),
    ):
        with torch.device("meta"):
            model = kind(config)
        assert sum(p.numel() for p in model.parameters()) == count
        variables = shapes(network)
        assert size(variables["params"]) == count
        empty = jax.tree.map(
            lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables
        )
        ours = {name: list(value.shape) for name, value in to_torch(empty).items()}
        assert ours == torch_references.shapes(model)


@pytest.fixture(scope="module")
def reference():
    return CASES["speech"]()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A character tokenizer as the release has, of a few letters."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_text("go dog\nbad cat\nabcdgot\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "spm_char"),
        model_type="char",
        vocab_size=13,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return transformers.SpeechT5Tokenizer(str(folder / "spm_char.model"))


def torch_models(reference):
    configs = reference["configs"]
    model = transformers.SpeechT5ForTextToSpeech(
        transformers.SpeechT5Config(**configs["model"])
    )
    vocoder = transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(**configs["vocoder"])
    )
    return torch_references.filled(model), torch_references.filled(vocoder)


def torch_wave(model, vocoder, tokens, reference):
    torch_references.give_dropout(model, reference["keep"][0])
    with torch.no_grad():
        return model.generate_speech(
            torch.tensor([tokens]),
            torch.from_numpy(reference["speakers"][:1]),
            threshold=0.95,
            vocoder=vocoder,
        ).numpy()


def our_wave(pipeline, text, reference):
    with jax.default_matmul_precision("highest"):
        waves, lengths = pipeline(
            [text],
            reference["speakers"][0],
            keep=reference["keep"][:1],
            threshold=0.95,
        )
    return waves[0, : lengths[0]]


TEXT = "go bad cat"


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_folders_of_transformers_load(form, reference, tokenizer, tmp_path):
    model, vocoder = torch_models(reference)
    for network, name in ((model, "model"), (vocoder, "vocoder")):
        network.save_pretrained(tmp_path / name)
        if form == "bin":  # with normalised weights, as the release has them
            (tmp_path / name / "model.safetensors").unlink()
            if name == "vocoder":
                network.apply_weight_norm()
            torch.save(network.state_dict(), tmp_path / name / "pytorch_model.bin")
    tokenizer.save_pretrained(tmp_path / "model")
    pipeline = TextToSpeech.from_pretrained(tmp_path / "model", tmp_path / "vocoder")
    ours = our_wave(pipeline, TEXT, reference)
    tokens = tokenizer(TEXT).input_ids
    assert len(tokens) == len(TEXT) + 2 and tokens[-1] == tokenizer.eos_token_id
    theirs = torch_wave(model, vocoder, tokens, reference)
    assert ported_models.relative_error(ours, theirs) < 1e-4


def test_transformers_loads_what_we_save(reference, tokenizer, tmp_path):
    pipeline = ported_models.text_to_speech(reference)
    pipeline.tokenizer = tokenizer
    pipeline.save_pretrained(tmp_path / "model", tmp_path / "vocoder")
    loaded = []
    for kind, name in (
        (transformers.SpeechT5ForTextToSpeech, "model"),
        (transformers.SpeechT5HifiGan, "vocoder"),
    ):
        network, info = kind.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        loaded.append(network.eval())
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(TEXT)
    theirs = torch_wave(*loaded, tokens.input_ids, reference)
    ours = our_wave(pipeline, TEXT, reference)
    assert ported_models.relative_error(ours, theirs) < 1e-4
