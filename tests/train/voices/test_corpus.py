"""Words as arrays."""

import numpy as np

from gptfl_jax import configuration
from train.voices import quality
from train.voices.corpus import make_corpus, words_of


def test_clips_are_padded_to_whole_steps_and_long_ones_left_out():
    clips = [[np.full(n, 0.5, np.float32) for n in (256, 257, 600)], []]
    clips[1] = [np.full(n, -1, np.float32) for n in (1, 513, 1600)]
    made = make_corpus(clips, 8, 4)
    # Hops rounded up, 2 of silence, and up to a multiple of 4; 1600 are 9 of 8.
    assert made.frames.tolist() == [4, 4, 8, 4, 8]
    assert made.words.tolist() == [0, 1, 2, 0, 1]
    assert made.voices.tolist() == [0, 0, 0, 1, 1]
    assert made.waves.shape == (5, 8 * 256)
    np.testing.assert_array_equal((made.waves != 0).sum(1), [256, 257, 600, 1, 513])
    assert made.waves[0, 0] == 16384 and made.waves[4, 0] == -32767


def test_the_words_are_those_of_speech_commands_by_default():
    settings = configuration.default_config("text_to_speech").text_to_speech
    settings.words = ()
    words = words_of(settings)
    assert len(words) == 35 and set(words) > set(quality.DIGITS)
    assert "silence" not in words
