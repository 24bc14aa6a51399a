import io
import os
import pathlib

import numpy as np
import pytest
import soundfile

from gptfl_jax.data import audio, noise
from gptfl_jax.data.audio import Clip, FeatureSettings
from gptfl_jax.errors import UserError

RNG = np.random.default_rng(0)


def sweep(samples=5000):
    """A tone that rises, some hiss, and silence at the end."""
    time = np.arange(samples) / 16_000
    wave = 0.5 * np.sin(2 * np.pi * (300 + 4000 * time) * time)
    wave += 0.01 * np.random.default_rng(1).normal(size=samples)
    wave[-2000:] = 0
    return wave.astype(np.float32)


def mel(hz):
    return 2595 * np.log10(1 + hz / 700)


def reference_power(wave, size, hop, num_mels, rate):
    """torchaudio's MelSpectrogram by its definition: sums and loops, float64."""
    wave, n = wave.astype(np.float64), len(wave)
    samples = np.arange(size)
    window = np.sin(np.pi * samples / size) ** 2
    bins = np.arange(size // 2 + 1)
    dft = np.exp(-2j * np.pi * np.outer(bins, samples) / size)
    frames = []
    for centre in range(0, n + 1, hop):
        at = centre - size // 2 + samples
        at = np.where(at < 0, -at, at)
        at = np.where(at >= n, 2 * (n - 1) - at, at)
        frames.append(np.abs(dft @ (window * wave[at])) ** 2)
    filters = np.zeros((len(bins), num_mels))
    step = mel(rate / 2) / (num_mels + 1)
    for band in range(num_mels):
        low, mid, high = (
            700 * (10 ** (step * (band + i) / 2595) - 1) for i in range(3)
        )
        for k in bins:
            hz = k * rate / size
            if low < hz <= mid:
                filters[k, band] = (hz - low) / (mid - low)
            elif mid < hz < high:
                filters[k, band] = (high - hz) / (high - mid)
    return np.stack(frames) @ filters


def recording():
    """The recording of Speech Commands that comes with the reference data."""
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    folder = pathlib.Path(os.environ["GPTFL_DATA_DIR"]) / "speech_commands"
    return audio.read(folder / "00176480_nohash_0_bed.wav")


@pytest.mark.parametrize("wave", ["sweep", "recording"])
def test_log_mel_is_the_definition(wave):
    wave = sweep() if wave == "sweep" else recording()
    power = reference_power(wave, 1024, 160, 128, 16_000)
    expected = 10 * np.log10(np.maximum(power, 1e-10))
    found = audio.log_mel(wave, FeatureSettings())
    assert found.shape == (1 + len(wave) // 160, 128) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_silence_is_at_the_floor():
    found = audio.log_mel(np.zeros(3000, np.float32), FeatureSettings())
    assert (found == -100).all()


@pytest.mark.parametrize("wave", ["sweep", "recording"])
def test_mfcc_is_the_definition(wave):
    wave = sweep() if wave == "sweep" else recording()
    power = reference_power(wave, 800, 160, 128, 16_000)
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80)
    m = np.arange(128)
    expected = np.stack(
        [
            (decibels * np.cos(np.pi * k * (2 * m + 1) / 256)).sum(1)
            * np.sqrt((1 if k == 0 else 2) / 128)
            for k in range(40)
        ],
        1,
    )
    settings = FeatureSettings(kind="mfcc", fft_size=800)
    np.testing.assert_allclose(audio.mfcc(wave, settings), expected, atol=1e-3, rtol=0)


def test_features_at_another_rate_and_size():
    wave = sweep(1500)
    settings = FeatureSettings(
        sample_rate_hz=8000, num_mels=20, fft_size=256, hop=100, standardise=False
    )
    expected = 10 * np.log10(
        np.maximum(reference_power(wave, 256, 100, 20, 8000), 1e-10)
    )
    np.testing.assert_allclose(audio.compute(wave, settings), expected, atol=1e-4)
    cut = settings._replace(max_duration_s=0.1)
    np.testing.assert_array_equal(
        audio.compute(wave, cut), audio.compute(wave[:800], settings)
    )


def test_silence_behind_a_clip_and_the_range_of_its_bands():
    wave = np.random.default_rng(0).normal(size=400)
    settings = FeatureSettings(num_mels=8, fft_size=64, hop=32, standardise=False)
    longer = audio.compute(wave, settings._replace(least_duration_s=0.05))
    padded = audio.compute(np.pad(wave, (0, 400)), settings)
    np.testing.assert_array_equal(longer, padded)
    same = audio.compute(wave, settings._replace(least_duration_s=0.01))
    np.testing.assert_array_equal(same, audio.compute(wave, settings))
    assert padded.max() - padded.min() > 60
    narrow = audio.compute(np.pad(wave, (0, 400)), settings._replace(range_db=30.0))
    expected = np.maximum(padded, padded.max() - 30)
    np.testing.assert_allclose(narrow, expected, rtol=1e-6)


def test_standardised_bands():
    x = np.asarray([[1, 5], [3, 5], [8, 5]], np.float32)
    # Mean 4, squares 9 + 1 + 16
    deviation = np.sqrt(26 / 3) + 1e-5
    expected = np.asarray([[-3, 0], [-1, 0], [4, 0]]) / [deviation, 1]
    np.testing.assert_allclose(audio.standardise(x), expected, rtol=1e-6)


def test_bands_standardised_together():
    x = np.asarray([[1, 5], [3, 5], [8, 5]], np.float32)
    # Mean 27 / 6, squares 12.25 + 2.25 + 12.25 + 3 * 0.25
    deviation = np.sqrt(27.5 / 6) + 1e-5
    expected = np.asarray([[-3.5, 0.5], [-1.5, 0.5], [3.5, 0.5]]) / deviation
    found = audio.standardise(x, by_band=False)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Of a clip, as `compute` has it.
    settings = FeatureSettings(num_mels=8, fft_size=64, hop=32, by_band=False)
    wave = np.random.default_rng(0).normal(size=400)
    clip = audio.compute(wave, settings)
    assert abs(clip.mean()) < 1e-6 and abs(clip.std() - 1) < 1e-5
    plain = audio.compute(wave, settings._replace(standardise=False))
    order = np.argsort(plain.mean(0))  # the bands' order stays
    np.testing.assert_array_equal(np.argsort(clip.mean(0)), order)


@pytest.mark.parametrize(
    ("ending", "form", "subtype", "tolerance"),
    [
        ("wav", "WAV", "FLOAT", 0),
        ("wav", "WAV", "PCM_16", 1 / 32768),
        ("flac", "FLAC", "PCM_24", 1e-6),
        ("ogg", "OGG", "VORBIS", 0.2),
    ],
)
def test_read_formats(tmp_path, ending, form, subtype, tolerance):
    wave = sweep()
    file = tmp_path / f"sound.{ending}"
    soundfile.write(file, wave, 16_000, format=form, subtype=subtype)
    found = audio.read(file)
    assert found.dtype == np.float32 and found.shape == wave.shape
    assert np.abs(found - wave).max() <= tolerance


def test_features_of_the_first_channel(tmp_path):
    waves = RNG.normal(size=(2, 2000)).astype(np.float32) / 4
    file = tmp_path / "stereo.wav"
    soundfile.write(file, waves.T, 16_000, subtype="FLOAT")
    settings = audio.FeatureSettings(num_mels=4, fft_size=256)
    for channel, wave in (("mean", waves.mean(0)), ("first", waves[0])):
        asked = settings._replace(channel=channel)
        features, _ = audio.extract([audio.Clip(file)], asked)
        np.testing.assert_allclose(features[0], audio.compute(wave, asked), atol=1e-4)
    with pytest.raises(UserError, match="channel = 'last': takes one of mean, first"):
        audio.extract([audio.Clip(file)], settings._replace(channel="last"))


def test_read_averages_channels_and_takes_a_part(tmp_path):
    left, right = RNG.normal(size=(2, 400)).astype(np.float32) / 4
    file = tmp_path / "stereo.wav"
    soundfile.write(file, np.stack([left, right], 1), 8000, subtype="FLOAT")
    mono = (left + right) / 2
    np.testing.assert_allclose(audio.read(file, 8000), mono, atol=1e-7)
    first = audio.read(file, 8000, channel="first")
    np.testing.assert_allclose(first, left, atol=1e-7)
    part = audio.read(file, 8000, start_s=0.01, duration_s=0.02)
    np.testing.assert_allclose(part, mono[80:240], atol=1e-7)
    rest = audio.read(file, 8000, start_s=0.04, duration_s=1.0)
    np.testing.assert_allclose(rest, mono[320:], atol=1e-7)
    with pytest.raises(UserError, match=r"has 0.05 s, hence no sample at 0.05 s"):
        audio.read(file, 8000, start_s=0.05)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_resampling_keeps_a_tone(rate):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate).astype(np.float32)
    found = audio.resample(tone, rate, 16_000)
    expected = np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
    assert len(found) == 8000
    # The ends are cut off sharply; inside the tone must be itself.
    assert np.abs(found - expected)[400:-400].max() < 2e-3


def test_long_clips_are_computed_in_parts(monkeypatch):
    settings = FeatureSettings()
    whole = audio.log_mel(sweep(), settings)
    monkeypatch.setattr(audio, "_FRAMES", 7)
    np.testing.assert_allclose(audio.log_mel(sweep(), settings), whole, atol=1e-4)


def test_more_samples_than_a_clip_may_have_are_refused(tmp_path):
    file = tmp_path / "slow.wav"
    soundfile.write(file, np.zeros(3000), 1, subtype="PCM_16")
    with pytest.raises(UserError, match=r"slow.wav: holds 3,000 s .* are 48,000,000 s"):
        audio.read(file)
    part = audio.read(file, duration_s=2.0)
    assert len(part) == 32_000


def test_files_that_are_no_sound(tmp_path):
    file = tmp_path / "broken.wav"
    with pytest.raises(UserError, match=r"broken.wav: cannot be read"):
        audio.read(file)
    file.write_bytes(b"RIFF not a wave file")
    with pytest.raises(UserError, match=r"broken.wav: cannot be read as sound"):
        audio.read(file)
    with pytest.raises(UserError, match=r"broken.wav: cannot be read as sound"):
        audio.extract([Clip(file)], FeatureSettings())
    with pytest.raises(UserError, match=r"gone.wav: cannot be read"):
        audio.extract([Clip(tmp_path / "gone.wav")], FeatureSettings())
    soundfile.write(file, np.zeros(0, np.float32), 16_000)
    with pytest.raises(UserError, match="holds no sound"):
        audio.read(file)
    soundfile.write(file, np.asarray([0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match="samples that are no numbers"):
        audio.read(file)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "wavelet"}, "features.kind = 'wavelet': takes one of log_mel, mfcc"),
        ({"hop": 0}, "features.hop = 0: takes a whole number > 0"),
        ({"kind": "mfcc", "num_mels": 30}, "num_coefficients = 40: there are no more"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        audio.extract([], FeatureSettings(**settings))


def write_clips(folder):
    waves = [sweep(2000 + 700 * i) for i in range(3)]
    for index, wave in enumerate(waves):
        soundfile.write(folder / f"{index}.wav", wave, 16_000, subtype="FLOAT")
    return waves, [Clip(folder / f"{index}.wav") for index in range(3)]


def test_extract_pads_and_counts_frames(tmp_path):
    waves, clips = write_clips(tmp_path)
    settings = FeatureSettings(num_mels=16)
    features, lengths = audio.extract(clips, settings)
    assert lengths.tolist() == [13, 17, 22] and features.shape == (3, 22, 16)
    for row, wave, length in zip(features, waves, lengths, strict=True):
        np.testing.assert_array_equal(row[:length], audio.compute(wave, settings))
        assert not row[length:].any()
    empty, none = audio.extract([], settings)
    assert empty.shape == (0, 0, 16) and none.shape == (0,)


def test_cache_goes_by_content(tmp_path, monkeypatch):
    _, clips = write_clips(tmp_path)
    settings, cache = FeatureSettings(num_mels=16), tmp_path / "cache"
    computed = []
    honest = audio.compute

    def counting(wave, settings):
        computed.append(len(wave))
        return honest(wave, settings)

    monkeypatch.setattr(audio, "compute", counting)
    first, _ = audio.extract(clips, settings, cache)
    assert sorted(computed) == [2000, 2700, 3400]
    # Moved and reordered files are known; only a hash decides.
    moved = tmp_path / "moved.wav"
    (tmp_path / "0.wav").rename(moved)
    clips = [clips[1], Clip(moved), clips[2]]
    again, lengths = audio.extract(clips, settings, cache)
    assert len(computed) == 3
    np.testing.assert_array_equal(again, first[[1, 0, 2]])
    assert lengths.tolist() == [17, 13, 22]
    # Another content, other settings, a part, a noise: all computed.
    soundfile.write(moved, sweep(1000), 16_000)
    audio.extract(clips, settings, cache)
    assert computed[3:] == [1000]
    audio.extract(clips[:1], settings._replace(standardise=False), cache)
    audio.extract([clips[0]._replace(duration_s=0.1)], settings, cache)
    for seed in (1, 2, 1):
        hiss = noise.Noise(10.0, (seed,))
        audio.extract([clips[0]._replace(noise=hiss)], settings, cache)
    assert computed[4:] == [2700, 1600, 2700, 2700]
    # A damaged file is computed again and put right.
    for file in cache.rglob("*.npy"):
        file.write_bytes(b"half a file")
    audio.extract(clips[:1], settings, cache)
    audio.extract(clips[:1], settings, cache)
    assert computed[8:] == [2700]


def test_extract_adds_noise_before_the_features(tmp_path):
    (wave, *_), clips = write_clips(tmp_path)
    settings = FeatureSettings(num_mels=16)
    hum = sweep(900) + 0.1
    soundfile.write(tmp_path / "hum.wav", hum, 16_000, subtype="FLOAT")
    for recording, background in (("", None), (str(tmp_path / "hum.wav"), hum)):
        added = noise.Noise(3.0, (7,), recording)
        (features,), _ = audio.extract([clips[0]._replace(noise=added)], settings)
        expected = audio.compute(noise.add_noise(wave, added, background), settings)
        np.testing.assert_array_equal(features, expected)


def test_read_takes_the_content_of_a_file(tmp_path):
    file = tmp_path / "sound.flac"
    soundfile.write(file, sweep(), 16_000)
    np.testing.assert_array_equal(
        audio.read(io.BytesIO(file.read_bytes())), audio.read(file)
    )
