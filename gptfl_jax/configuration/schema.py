"""Every field there is, by section."""

from collections.abc import Iterator

from gptfl_jax import families, rules
from gptfl_jax.configuration.fields import Field, choice
from gptfl_jax.configuration.sections import (
    compare,
    data,
    federated,
    few_steps,
    generate,
    model,
    prompts,
    report,
    text_to_image,
    text_to_sound,
    text_to_speech,
    train,
)

SECTIONS = {
    "data": data,
    "model": model,
    "prompts": prompts,
    "generate": generate,
    "train": train,
    "federated": federated,
    "compare": compare,
    "report": report,
    "text_to_image": text_to_image,
    "text_to_speech": text_to_speech,
    "text_to_sound": text_to_sound,
    "few_steps": few_steps,
}
"""The module of each section, in the order in which `--help` shows them."""

SCHEMA: dict[str, Field | dict[str, Field]] = {
    "seed": Field(
        0, rules.SEED, "the one seed that every random draw starts from", common=True
    ),
    **choice(
        families.TRACKER,
        "none",
        "where stages 2 and 3 and the training of generators show their curves beside "
        "metrics.jsonl: tensorboard, wandb, trackio (extras of these names)",
    ),
    **{name: module.FIELDS for name, module in SECTIONS.items()},
}


def fields(*sections: str) -> Iterator[tuple[str, Field]]:
    """All fields with their dotted names, of `sections` (and `seed`), or of all."""
    for name, entry in SCHEMA.items():
        if isinstance(entry, Field):
            yield name, entry
        elif not sections or name in sections:
            for key, field in entry.items():
                yield f"{name}.{key}", field


def find(dotted: str) -> Field | None:
    """The field of this dotted name, if there is one."""
    section, dot, key = dotted.partition(".")
    entry = SCHEMA.get(section)
    if isinstance(entry, dict):
        return entry.get(key)
    return None if dot else entry
