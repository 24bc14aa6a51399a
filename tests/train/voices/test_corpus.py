"""Words as arrays."""

import numpy as np

from gptfl_jax import configuration
from train.voices import quality, synthesizers
from train.voices.corpus import load_held_out, make_corpus, voices_of, words_of


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


def test_held_out_clips_are_words_that_are_not_learned(tmp_path, monkeypatch):
    """One a voice, kept: a resumed run needs no synthesizer."""
    spoken = []

    def speak(voice, word):
        spoken.append((voice.name, word))
        return np.full(512, 0.5, np.float32)

    monkeypatch.setattr(synthesizers, "speak", speak)
    monkeypatch.setattr(synthesizers, "check_engines", lambda engines: None)
    settings = configuration.default_config("text_to_speech").text_to_speech
    settings.engines = ("flite",)
    clips = load_held_out(tmp_path, settings)
    voices = [voice.name for voice in voices_of(settings)]
    assert sorted(name for name, _ in spoken) == sorted(voices)
    said = {word for _, word in spoken}
    assert len(said) == 16 and not said & set(words_of(settings))
    assert clips.voices.tolist() == list(range(len(voices)))
    assert clips.frames.tolist() == [4] * len(voices)
    again = load_held_out(tmp_path, settings)
    assert len(spoken) == len(voices)
    np.testing.assert_array_equal(again.waves, clips.waves)
