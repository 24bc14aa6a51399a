"""Decoding of networks that are tables: the next token depends on the last alone."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.text import decoding
from gptfl_jax.generators.text.decoding import Decoding, Marks

MARKS = Marks(start=0, end=1, padding=0)


def table(seed, size=5):
    return 2 * jax.random.normal(jax.random.key(seed), (size, size))


def step_of(logits):
    """A step whose cache counts the tokens of each row, to see it being followed."""

    def step(token, position, cache):
        return logits[token], cache + 1

    return step


@functools.partial(jax.jit, static_argnames=("rows", "how"))
def run(logits, rows, how, keys=None):
    step = step_of(logits)
    return decoding.decode(step, jnp.zeros(rows), rows, MARKS, how, keys)


def test_greedy_by_hand():
    # 0 is followed by 3, 3 by 2, 2 by 4, 4 by the end.
    logits = jnp.zeros((5, 5)).at[[0, 3, 2, 4], [3, 2, 4, 1]].set(1.0)
    texts = run(logits, 2, Decoding("greedy", max_length=6))
    assert texts.tolist() == [[3, 2, 4, 1, 0, 0]] * 2
    assert run(logits, 1, Decoding("greedy", max_length=3)).tolist() == [[3, 2, 4]]


def test_the_loop_ends_with_the_last_text():
    positions = []

    def step(token, position, cache):
        jax.debug.callback(lambda p: positions.append(int(p)), position)
        # Row 0 ends at once, row 1 at its third token.
        end = (jnp.arange(2) == 0) | (position == 2)
        return jax.nn.one_hot(jnp.where(end, 1, 3), 5), cache

    how = Decoding("greedy", max_length=9)
    texts = decoding.decode(step, (), 2, MARKS, how)
    jax.effects_barrier()
    assert texts.tolist() == [[1] + [0] * 8, [3, 3, 1] + [0] * 6]
    assert sorted(positions) == [0, 1, 2]


def test_the_likeliest_by_hand():
    keep = decoding.keep_likeliest
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))

    def kept(top_k, top_p):
        return np.flatnonzero(np.isfinite(keep(logits, top_k, top_p))).tolist()

    assert kept(0, 1.0) == kept(9, 1.0) == [0, 1, 2, 3]
    assert kept(2, 1.0) == [1, 3]
    assert kept(0, 0.39) == [1]
    assert kept(0, 0.41) == kept(0, 0.69) == [1, 3]
    assert kept(0, 0.71) == [1, 2, 3]
    # Of the three likeliest, 0.3 / 0.9 less than before: probabilities start anew.
    assert kept(3, 0.77) == [1, 3] and kept(3, 0.79) == [1, 2, 3]
    # The logits that are kept are kept as they are.
    np.testing.assert_array_equal(keep(logits, 2, 1.0)[0, [1, 3]], logits[0, [1, 3]])


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.8}],
    ids=str,
)
def test_draws_follow_the_probabilities(options):
    """Of pairs of tokens, within 5 standard deviations of a binomial count."""
    logits, rows = table(0).at[:, 1].set(-1e9), 20_000
    how = Decoding("sample", max_length=2, **options)
    texts = run(logits, rows, how, jax.random.split(jax.random.key(1), rows))
    kept = decoding.keep_likeliest(logits / how.temperature, how.top_k, how.top_p)
    shares = np.asarray(jax.nn.softmax(kept, axis=-1), np.float64)
    expected = shares[0][:, None] * shares
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(np.asarray(texts).T), 1)
    deviation = np.sqrt(rows * expected * (1 - expected))
    assert (np.abs(counts - rows * expected) <= 5 * deviation).all()


def test_one_candidate_is_greedy_and_all_are_no_limit():
    logits, keys = table(2), jax.random.split(jax.random.key(3), 6)
    draw = functools.partial(run, logits, 6)
    greedy = draw(Decoding("greedy", max_length=8))
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        how = Decoding("sample", max_length=8, **options)
        np.testing.assert_array_equal(draw(how, keys), greedy)
    free = draw(Decoding("sample", max_length=8), keys)
    assert (free != greedy).any()
    how = Decoding("sample", max_length=8, top_k=5)
    np.testing.assert_array_equal(draw(how, keys), free)


def test_a_text_depends_on_its_key_alone():
    logits, keys = table(4), jax.random.split(jax.random.key(5), 8)
    how = Decoding("sample", max_length=8)
    texts = run(logits, 8, how, keys)
    assert len({tuple(text) for text in texts.tolist()}) > 4
    order = np.array([3, 0, 7])
    np.testing.assert_array_equal(run(logits, 3, how, keys[order]), texts[order])
    # A longer limit changes no token before it.
    short = run(logits, 8, Decoding("sample", max_length=3), keys)
    np.testing.assert_array_equal(short, texts[:, :3])


def every_text(logits, length, penalty):
    """All texts of a table up to a length, best first: (score, tokens)."""
    log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    found = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(len(log_probs)), repeat=size):
            whole = tokens[-1] == MARKS.end or size == length
            if whole and MARKS.end not in tokens[:-1]:
                pairs = zip((MARKS.start, *tokens), tokens, strict=False)
                score = sum(log_probs[pair] for pair in pairs) / size**penalty
                found.append((score, tokens))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_wide_beams_find_the_likeliest_texts(penalty):
    """With a beam for each text, the search is exhaustive; without a way to stop early
    its order is that of all texts."""
    logits = table(6, size=4)
    how = Decoding("beam", max_length=3, num_beams=64, length_penalty=penalty)

    def search(logits):
        rows = jnp.zeros(2 * 64)
        return decoding.beam_search(step_of(logits), rows, 2, MARKS, how)

    texts, scores = jax.jit(search)(logits)
    best = every_text(logits, 3, penalty)[:5]
    for text in range(2):
        for (score, tokens), row, ours in zip(
            best, texts[text].tolist(), scores[text].tolist(), strict=False
        ):
            assert row == [*tokens, *[0] * (3 - len(tokens))]
            assert abs(score - ours) < 1e-5


def test_beams_keep_their_own_cache():
    """The cache holds what each beam has said: its logits forbid to say it again."""
    logits = table(7, size=6).at[:, 1].set(-4.0)

    def step(token, position, cache):
        cache = cache.at[jnp.arange(len(token)), token].set(True)
        return jnp.where(cache, -1e4, logits[token]), cache

    how = Decoding("beam", max_length=5, num_beams=3)
    texts, _ = jax.jit(
        lambda: decoding.beam_search(step, jnp.zeros((3, 6), bool), 1, MARKS, how)
    )()
    for text in texts[0].tolist():
        said = [token for token in text if token != MARKS.padding]
        assert len(said) == len(set(said)) > 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "best"}, "method = 'best': takes greedy or sample or beam"),
        ({"max_length": 0}, "max_length = 0: takes a number >= 1"),
        ({"temperature": 0.0}, "temperature = 0.0: takes a number > 0"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"num_beams": 0}, "num_beams = 0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Decoding(**options)
