"""What --dry_run says of stage 1a."""

import pytest

from generate import prompts
from gptfl_jax import configuration


@pytest.fixture
def said(tmp_path, capsys):
    def of(**fields):
        config = configuration.default_config("data", "prompts")
        config.prompts.update(fields)
        prompts.dry_run(config, tmp_path)
        assert not list(tmp_path.iterdir())
        return " ".join(capsys.readouterr().out.split())

    return of


def test_sentences_that_no_model_draws_are_counted(said):
    text = said(method="multi_domain", domains=("photo", "drawing"))
    assert "20 of 10 classes by multi_domain" in text


def test_a_chat_model_is_not_asked(said):
    text = said(method="chat", per_class=30, chat_requests=4)
    assert "at least 300 to" in text and "4 at once" in text
