"""What the small drums learn from."""

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from gptfl_jax import launch
from gptfl_jax.errors import UserError
from train.drums import corpus, prompts
from train.drums.spectrogram import log_mel

RATE = 16_000


def tone(hertz, life_s, samples=corpus.synthesis.LENGTH):
    time = np.arange(samples) / RATE
    return np.sin(2 * np.pi * hertz * time) * np.exp(-time / life_s)


def test_centroid_and_duration_of_tones():
    waves = np.stack([tone(500, 1e9), tone(4000, 1e9)])
    np.testing.assert_allclose(corpus.centroids_hz(waves), [500, 4000], rtol=0.05)
    # exp(-2 t / life) of the energy is still to come: 1/20 at life log(20) / 2.
    found = corpus.durations_s(np.stack([tone(1000, 0.1), tone(1000, 0.02)]))
    np.testing.assert_allclose(found, [0.1 * 1.498, 0.02 * 1.498], rtol=0.02)


def test_words_for_a_stroke_among_those_of_its_class():
    settings = launch.read_config("drums").text_to_sound
    settings.strokes, settings.variations, settings.recordings = 5, 2, ""
    quiet = corpus.Recording(tone(300, 0.1).astype(np.float32), "tom", "acoustic")
    made = corpus.make_corpus(settings, [quiet], seed=0)
    assert made.waves.shape == (32, corpus.synthesis.LENGTH)
    labels, brightness, lengths, kinds = made.attributes.T
    assert np.bincount(labels).tolist() == [5, 5, 7, 5, 5, 5]
    assert set(kinds) <= {1, 2} and kinds[-2:].tolist() == [1, 1]
    centroids = corpus.centroids_hz(made.waves)
    durations = corpus.durations_s(made.waves)
    for label in range(6):
        rows = labels == label
        bright, dark = (centroids[rows & (brightness == i)] for i in (1, 2))
        assert len(bright) == len(dark) and bright.min() > dark.max()
        short, long = (durations[rows & (lengths == i)] for i in (1, 2))
        assert len(short) == len(long) and short.max() < long.min()
    again = corpus.make_corpus(settings, [quiet], seed=0)
    np.testing.assert_array_equal(made.waves, again.waves)
    assert (corpus.make_corpus(settings, [], seed=1).waves[0] != made.waves[0]).any()


def test_recordings_are_known_by_their_names(tmp_path):
    for name in ("bd_808", "drum_tom_hi_soft", "drum_splash_hard", "elec_snare"):
        soundfile.write(tmp_path / f"{name}.flac", tone(400, 0.1, 4000), RATE)
    found = corpus.read_recordings(str(tmp_path))
    assert [(r.name, r.kind) for r in found] == [
        ("kick", "electronic"),
        ("tom", "acoustic"),
        ("snare", "electronic"),
    ]
    assert corpus.read_recordings("") == []
    with pytest.raises(UserError, match="recordings = .*apt install sonic-pi-samples"):
        corpus.read_recordings(str(tmp_path / "nothing"))


def test_spectrograms_by_hand():
    """A tone of bin 64 has the magnitude that its window gives, and half beside."""
    wave = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(8192) / RATE)
    mels = np.asarray(log_mel(jnp.asarray(wave[None], jnp.float32)))
    assert mels.shape == (1, 17, 64)
    middle = 10.0 ** mels[0, 8]
    # A Hann window of 1024 gives 0.5 * 1024 / 4 in the bin, half beside it.
    import librosa

    filters = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=64, fmin=0, fmax=8000)
    assert (filters.max(1) > 0).all()  # no band is empty
    expected = filters[:, 63:66] @ [64, 128, 64]
    np.testing.assert_allclose(middle, np.maximum(expected, 1e-3), atol=2e-3)


def test_prompts_by_their_place():
    texts = prompts.all_prompts()
    assert len(texts) == len(set(texts)) == 6 * 27
    place = prompts.prompt_index(jnp.asarray([[3, 1, 0, 2], [0, 0, 0, 0]]))
    assert [texts[i] for i in place] == ["bright electronic hi-hat", "kick drum"]
    # The domains of stage 1 are sentences it has learned.
    domains = prompts.LABELS.domains
    assert {f"{domain} kick drum" for domain in domains} <= set(texts)
