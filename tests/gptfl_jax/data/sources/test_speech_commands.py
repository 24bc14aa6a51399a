import numpy as np
import pytest

from gptfl_jax.data import audio, sources
from gptfl_jax.errors import UserError

from ..conftest import (
    SETTINGS,
    SMALL,
    SPOKEN,
    by_config,
    check_rows,
)


def test_speech_commands_split_by_their_lists(speech_commands):
    source = sources.load("speech_commands", str(speech_commands), features=SMALL)
    check_rows(source.train, [speech_commands / name for name in SPOKEN["train"]])
    check_rows(source.test, [speech_commands / name for name in SPOKEN["testing"]])
    check_rows(
        by_config("speech_commands", speech_commands).test,
        [speech_commands / name for name in SPOKEN["testing"]],
    )
    names = source.train.class_names
    assert len(names) == 36 and names[1] == "bed" and names[-2:] == ("zero", "silence")
    assert source.train.labels.tolist() == [1, 1, 34]
    assert source.test.labels.tolist() == [33, 34]
    assert source.train.clients.tolist() == ["0a0b0c0d", "1a1b1c1d", "0a0b0c0d"]
    other = sources.load(
        "speech_commands",
        str(speech_commands),
        features=SMALL,
        test_list="validation",
    )
    check_rows(other.train, [speech_commands / name for name in SPOKEN["train"]])
    check_rows(other.test, [speech_commands / name for name in SPOKEN["validation"]])
    with pytest.raises(UserError, match="test_list = 'test': takes one of testing, v"):
        sources.load("speech_commands", str(speech_commands), test_list="test")


def test_speech_commands_silence(speech_commands):
    source = sources.load(
        "speech_commands",
        str(speech_commands),
        features={**SMALL, "standardise": False},
        silence=4,
        seed=2,
    )
    silent = source.train.labels == 35
    assert silent.sum() == 12 and (source.test.labels == 35).sum() == 8
    assert set(source.train.clients[silent]) == {"0a0b0c0d", "1a1b1c1d"}
    assert set(source.test.clients) == {"3a3b3c3d"}
    # Each is a second of its part of the 10 s of noise, at a sample of its own.
    recording = speech_commands / "_background_noise_" / "rain.wav"
    for part, begin, end in ((source.train, 0, 7), (source.test, 8, 9)):
        features, lengths = part.inputs
        rows = np.flatnonzero(part.labels == 35)
        assert (lengths[rows] == 101).all()
        assert len({features[row].tobytes() for row in rows}) == len(rows)
        for number, row in enumerate(rows):
            generator = np.random.default_rng([2, int(begin == 8), number])
            assert generator.integers(1) == 0
            start = generator.uniform(begin, end)
            wave = audio.read(recording, start_s=start, duration_s=1.0)
            expected = audio.log_mel(wave, SETTINGS)
            np.testing.assert_array_equal(features[row], expected)


def test_speech_commands_silence_needs_noise(speech_commands, tmp_path):
    for part in ("testing", "validation"):
        (tmp_path / f"{part}_list.txt").write_text("")
    with pytest.raises(UserError, match="silence=0 or complete the data set"):
        sources.load("speech_commands", str(tmp_path), silence=0.1)
