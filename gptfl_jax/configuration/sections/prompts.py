"""Fields of `config.prompts`."""

from typing import Any

from ml_collections import ConfigDict

from gptfl_jax import families, rules
from gptfl_jax.configuration.fields import Field, choice
from gptfl_jax.errors import refused


def _is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


FIELDS: dict[str, Field] = {
    **choice(
        families.PROMPTS,
        "class_prompt",
        "how prompts are made from the class names",
        common=True,
    ),
    "classes": Field(
        (), rules.NAMES, "class names; empty: those of the data source", common=True
    ),
    "template": Field(
        "",
        rules.TEXT,
        "sentence with {name} (multi_domain: and {domain}); of commongen and chat: "
        "what the text model is given; empty: the data set's or the method's own",
        common=True,
    ),
    "domains": Field(
        (), rules.NAMES, "domains of multi_domain; empty: the data set's own"
    ),
    "per_class": Field(
        0,
        rules.whole(0),
        "most prompts kept for a class, 0: all; of commongen and chat: prompts "
        "that are made for each class, 0: 200",
        common=True,
    ),
    "imported_file": Field(
        "", rules.TEXT, "prompt lists to import (.pkl or .json), for method imported"
    ),
    "text_model": Field(
        "mrm8488/t5-base-finetuned-common_gen",
        rules.NAME,
        "T5 model of commongen, of version 1.0 or 1.1: a folder or a hub id",
    ),
    "temperature": Field(
        1.0,
        rules.number(above=0),
        "of the sentences of commongen and chat: higher is more varied",
    ),
    "top_k": Field(
        50, rules.whole(0), "commongen keeps to this many likeliest tokens; 0: all"
    ),
    "top_p": Field(
        1.0,
        rules.number(above=0, most=1),
        "commongen and chat keep to the likeliest tokens of this probability",
    ),
    # The original's 20 count the token that a sentence starts from.
    "max_length": Field(
        19,
        rules.whole(1),
        "tokens of a sentence of commongen at most, its end included",
    ),
    "draws_per_prompt": Field(
        20,
        rules.whole(1),
        "sentences that commongen and chat draw for each prompt wanted, at most, "
        "before they give a class up",
    ),
    "batch_size": Field(
        64, rules.whole(1), "sentences that commongen draws at once, over all devices"
    ),
    "dtype": Field(
        "float32",
        rules.one_of("float32", "bfloat16"),
        "precision of commongen's network",
    ),
    "chat_url": Field(
        "https://api.openai.com/v1",
        rules.Rule("an http or https address", _is_web_address),
        "where chat asks: any endpoint with OpenAI's /chat/completions below it",
    ),
    "chat_model": Field("gpt-4o-mini", rules.NAME, "the name chat_url knows it by"),
    "chat_key_variable": Field(
        "OPENAI_API_KEY",
        rules.Rule("the name of an environment variable", rules.IDENTIFIER.valid),
        "environment variable with the key for chat_url; where it is not set, "
        "none is sent",
    ),
    "chat_options": Field(
        {},
        rules.KEYWORDS,
        "more fields of chat's requests, as {'max_tokens': 60}; None leaves out "
        "one that is sent otherwise (temperature, top_p, seed)",
    ),
    "chat_requests": Field(8, rules.whole(1), "requests that chat makes at once"),
}


def check(config: ConfigDict) -> None:
    """The rules that bind several fields."""
    prompts = config.prompts
    if prompts.method == "imported" and not prompts.imported_file:
        raise refused(
            "prompts.imported_file", "", "a file, when prompts.method is imported"
        )
    if prompts.template and "{name}" not in prompts.template:
        raise refused(
            "prompts.template", prompts.template, "a sentence with {name} in it"
        )
