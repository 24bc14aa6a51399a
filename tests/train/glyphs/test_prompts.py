"""The sentences that describe pictures, and their numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from train.glyphs.prompts import (
    Attributes,
    all_prompts,
    mention,
    prompt,
    prompt_index,
)


def test_prompts_read_as_sentences():
    assert prompt(7, weight="thin", slant="slanted") == (
        "a handwritten digit seven, thin slanted strokes"
    )
    assert prompt(0, "chalk", background="dark", framing="small") == (
        "a chalk digit zero on a dark background, small"
    )
    assert prompt(4, "") == "a digit four"
    assert prompt(1, "pen", "thick", "upright", "light", "centered") == (
        "a pen digit one, thick upright strokes on a light background, centered"
    )


def test_prompt_index_finds_the_sentence_of_the_attributes():
    prompts = all_prompts()
    assert len(prompts) == len(set(prompts)) == 10 * 7 * 4 * 4 * 3 * 4
    attributes = Attributes(*map(jnp.int32, (9, 3, 2, 1, 2, 3)))
    assert prompts[int(prompt_index(attributes))] == prompt(
        9, "pencil", "medium", "upright", "light", "centered"
    )


def test_mentions_leave_slots_open_but_never_change_them():
    shown = Attributes(*map(jnp.int32, (6, 1, 2, 3, 1, 2)))
    keys = jax.random.split(jax.random.key(0), 300)
    said = jax.vmap(mention, (0, None))(keys, shown)
    assert set(np.asarray(said.digit).tolist()) == {6}
    for value, full in zip(said[1:], shown[1:], strict=True):
        assert set(np.asarray(value).tolist()) == {0, int(full)}
