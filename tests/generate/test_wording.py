"""What is said of prompts before work starts."""

import types

import pytest

from generate import images, prompts, samples, wording
from gptfl_jax import configuration
from tests.small_generators import words_tokenizer


def said(capsys, by_class):
    wording.warn(words_tokenizer(), by_class)
    return capsys.readouterr().out


def test_unknown_words_and_bare_numbers_are_one_line(capsys):
    known = {"bird": ["a photo of a bird"], "cat": ["a cat", "a drawing of a cat"]}
    assert said(capsys, known) == ""
    text = said(capsys, known | {"Lotus": ["a Lotus", "a photo of Lotus"]})
    assert text.startswith("warning: the model's tokenizer knows no tokens for Lotus")
    assert "(class Lotus)" in text and "bird" not in text and text.count("\n") == 1

    # A number is no matter where words take its place, or where it is a part of one.
    numbers = {"0": ["a photo of 0"], "1": ["a photo of a bird"], "2": ["a cat 22"]}
    text = said(capsys, numbers)
    assert "bare numbers, 0: models make anything of these" in text
    assert "options.labels" in text and text.count("\n") == 1

    many = {f"word{n}": [f"word{n}"] for n in range(11)}
    assert "and 3 more" in said(capsys, many)


def test_it_is_said_before_pictures_are_made(tiny_model, tmp_path, capsys, monkeypatch):
    config = configuration.default_config("data", "prompts", "generate")
    config.prompts.classes = ("bird", "0")
    config.generate.model = str(tiny_model)
    config.generate.samples_per_class = "1"
    prompts.run(config, tmp_path)
    capsys.readouterr()

    class Stop(Exception):
        pass

    def load(*_, **__):
        return types.SimpleNamespace(tokenizer=words_tokenizer())

    def stop(*_):
        raise Stop

    monkeypatch.setattr(images.StableDiffusion, "from_pretrained", load)
    monkeypatch.setattr(samples.sample_folder, "SampleWriter", stop)
    with pytest.raises(Stop):
        images.run(config, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("warning")]
    assert "no tokens for 0 (class 0)" in line and "bare numbers, 0:" in line
