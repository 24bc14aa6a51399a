"""Voices of speech synthesizers; those that are not installed are left out."""

import importlib.util
import re
import shutil
import subprocess

import numpy as np
import pytest

from gptfl_jax.errors import UserError
from train.voices import synthesizers
from train.voices.synthesizers import Voice


def installed(engine):
    if engine == "hibari":
        return importlib.util.find_spec("hibari") is not None
    return shutil.which(engine) is not None


def test_there_are_voices_of_all_engines_each_with_a_name_of_its_own():
    voices = synthesizers.voices()
    counts = {
        engine: sum(v.engine == engine for v in voices)
        for engine in synthesizers.ENGINES
    }
    assert counts == {"espeak-ng": 222, "flite": 60, "hibari": 24}
    names = {voice.name for voice in voices}
    assert len(names) == len(voices)
    assert all("." not in name and "/" not in name for name in names)
    # flite's five voices, and all eight accents of espeak-ng.
    assert {v.model for v in voices if v.engine == "flite"} == {
        *("kal", "kal16", "awb", "rms", "slt")
    }
    assert len({v.model.split("+")[0] for v in voices if "+" in v.model}) == 8


@pytest.mark.parametrize(
    ("engine", "model"),
    [("espeak-ng", "en-us+m3"), ("flite", "rms"), ("hibari", "heart")],
)
def test_a_voice_speaks(engine, model):
    if not installed(engine):
        pytest.skip(f"{engine} is not installed")
    plain = synthesizers.speak(Voice(engine, model, 1.0), "seven")
    assert plain.dtype == np.float32
    assert 0.25 < len(plain) / 16000 < 1
    assert np.sqrt(np.square(plain).mean()) == pytest.approx(0.08, rel=1e-4)
    # Always the same sound.
    again = synthesizers.speak(Voice(engine, model, 1.0), "seven")
    np.testing.assert_array_equal(again, plain)
    slow = synthesizers.speak(Voice(engine, model, 0.7), "seven")
    assert 1.2 < len(slow) / len(plain) < 1.7
    # A shift of the frequencies leaves the rate of speech.
    high = synthesizers.speak(Voice(engine, model, 1.0, shift=1.3), "seven")
    assert 0.85 < len(high) / len(plain) < 1.15
    assert len(high) != len(plain) or (high != plain).any()


def test_a_shift_moves_all_frequencies(monkeypatch):
    tone = np.sin(2 * np.pi * 400 * np.arange(11025) / 22050).astype(np.float32)
    monkeypatch.setattr(synthesizers, "_flite", lambda voice, word: (tone, 22050))
    high = synthesizers.speak(Voice("flite", "tone", 1.0, shift=1.25), "beep")
    assert len(high) / 16000 == pytest.approx(0.5 / 1.25, rel=0.01)
    spectrum = np.abs(np.fft.rfft(high))
    assert spectrum.argmax() * 16000 / len(high) == pytest.approx(500, abs=3)


def test_words_come_in_the_order_of_voices_and_words():
    if not installed("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    voices = [Voice("espeak-ng", "en-us+m3", 1.0), Voice("espeak-ng", "en-gb+f2", 0.8)]
    clips = synthesizers.speak_all(["two", "zero"], voices)
    for voice, spoken in zip(voices, clips, strict=True):
        for word, clip in zip(["two", "zero"], spoken, strict=True):
            np.testing.assert_array_equal(clip, synthesizers.speak(voice, word))


def test_what_is_missing_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="flite is not installed: apt install flite"):
        synthesizers.check_engines({"flite"})
    monkeypatch.setitem(__import__("sys").modules, "hibari", None)
    synthesizers._load_hibari.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'gptfl-jax\[voices\]'"):
        synthesizers.check_engines({"hibari"})


def test_the_voices_are_those_of_the_programs():
    """espeak-ng speaks with its default voice where it does not know one."""
    if not installed("espeak-ng"):
        pytest.skip("espeak-ng is not installed")

    def list_of(kind):
        command = ["espeak-ng", f"--voices={kind}"]
        return subprocess.run(command, capture_output=True, text=True).stdout

    variants = set(re.findall(r"!v/(.+?)  ", list_of("variant")))
    accents = set(re.findall(r"^ *\d+ +(\S+)", list_of("en"), re.MULTILINE))
    for voice in synthesizers.voices():
        if voice.engine == "espeak-ng":
            accent, variant = voice.model.split("+")
            assert accent in accents and variant in variants


def test_a_failing_program_is_quoted(tmp_path, monkeypatch):
    program = tmp_path / "flite"
    program.write_text("#!/bin/sh\necho no such voice >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UserError, match="^flite -voice rms .*failed: no such voice"):
        synthesizers.speak(Voice("flite", "rms", 1.0), "two")
