import numpy as np
import pytest

from gptfl_jax.data import audio, noise, sources
from gptfl_jax.data.audio import FeatureSettings
from gptfl_jax.errors import UserError

from .conftest import write


def test_options_are_checked(fsdd, tmp_path):
    with pytest.raises(UserError, match="features does not take mels; it takes kind"):
        sources.load("fsdd", str(fsdd), features={"mels": 3})
    with pytest.raises(UserError, match="flaws does not take snr; it takes snr_db"):
        sources.load("fsdd", str(fsdd), flaws={"snr": 3})
    with pytest.raises(UserError, match="fsdd holds no pictures; leave them 0"):
        sources.load("fsdd", str(fsdd), image_size=32)
    with pytest.raises(UserError, match="fsdd takes no such option; it takes speakers"):
        sources.load("fsdd", str(fsdd), takes=3)
    with pytest.raises(UserError, match=r"no \*_\*_\*.wav, .*free-spoken-digit"):
        sources.load("fsdd", str(tmp_path))
    with pytest.raises(UserError, match="the training set is empty"):
        everyone = ("anna", "bert", "cleo")
        sources.load("fsdd", str(fsdd), test_speakers=everyone)


def test_flaws_are_put_into_the_training_set(fsdd, tmp_path):
    plain = sources.load("fsdd", str(fsdd))
    write(tmp_path / "sounds" / "hum.wav", 5)
    flaws = {
        **{"snr_db": (-10, 10), "snr_shares": (0.34, 0.33), "seed": 3},
        **{"background": str(tmp_path / "sounds")},
    }
    noisy = sources.load("fsdd", str(fsdd), flaws=flaws, cache=str(tmp_path / "cache"))
    np.testing.assert_array_equal(noisy.test.inputs[0], plain.test.inputs[0])
    np.testing.assert_array_equal(noisy.train.labels, plain.train.labels)
    levels = noise.level_of_client(3, (-10, 10), (0.34, 0.33), seed=3)
    level = dict(zip(("anna", "bert", "cleo"), levels, strict=True))
    settings = FeatureSettings(
        sample_rate_hz=8000, num_mels=40, fft_size=256, hop=80, max_duration_s=0.8
    )
    hum = audio.read(tmp_path / "sounds" / "hum.wav", 8000)
    names = ("0_bert_49", "1_cleo_30", "3_anna_5", "7_bert_12")
    for index, name in enumerate(names):
        wave = audio.read(fsdd / "recordings" / f"{name}.wav", 8000)
        snr_db = level[name.split("_")[1]]
        if not np.isnan(snr_db):
            added = noise.Noise(snr_db, (3, index, 0), "a file")
            wave = noise.add_noise(wave, added, hum)
        expected = audio.compute(wave, settings)
        length = noisy.train.inputs[1][index]
        np.testing.assert_array_equal(noisy.train.inputs[0][index, :length], expected)
    with pytest.raises(UserError, match="holds no recordings"):
        empty = {"snr_db": (3,), "background": str(tmp_path / "none")}
        sources.load("fsdd", str(fsdd), flaws=empty)

    wrong = sources.load("fsdd", str(fsdd), flaws={"label_noise": (1.0,), "seed": 1})
    assert (wrong.train.labels != plain.train.labels).all()
    np.testing.assert_array_equal(wrong.test.labels, plain.test.labels)
    np.testing.assert_array_equal(
        wrong.train.labels,
        noise.noisy_labels(plain.train.labels, plain.train.clients, 10, (1.0,), seed=1),
    )
