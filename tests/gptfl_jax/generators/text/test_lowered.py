"""Answers without their arrays: what is lowered is what runs."""

import jax
import numpy as np
import small_t5

from gptfl_jax.generators.text import text_to_text
from gptfl_jax.generators.text.decoding import Decoding


def test_the_lowered_program_gives_the_answers_of_a_run():
    model, how = small_t5.model(), Decoding("sample", max_length=4)
    lowered = text_to_text.lower(model.network, how, num_sequences=3)
    tokens, mask = model._tokenize(["a cat"])
    keys = jax.random.split(jax.random.key(0), (1, 3))
    expected = model.generate_tokens(tokens, mask, how, key=keys, num_sequences=3)
    found = lowered.program.compile()(model.params, tokens, mask, keys)
    np.testing.assert_array_equal(found, expected)
    twice = text_to_text.lower(model.network, how, num_sequences=6)
    assert twice.reading == lowered.reading
    assert 1.9 < twice.step / lowered.step < 2.1
