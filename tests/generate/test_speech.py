"""generate.speech without its networks; test_speech_runs.py has tiny ones."""

import io
import shutil

import numpy as np
import pytest
import soundfile

from generate import images, prompts, samples, speech
from gptfl_jax import artifacts, configuration
from gptfl_jax.data import audio
from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech import text_to_speech
from gptfl_jax.generators.speech.speakers import read_speakers, speakers_of
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from gptfl_jax.released import hub
from gptfl_jax.released.hub import ASSETS
from tests.small_generators import knows_every_word


def tone(seconds, rate=16000, hertz=1000.0):
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_silence_at_the_ends_is_cut():
    """A tone of 0.25 s from 0.5 s on, with a pause inside, in noise of -60 dB."""
    rate = 16000
    wave = np.zeros(2 * rate)
    wave[8000:9600] = tone(0.1)
    wave[10400:12000] = tone(0.1)
    wave += 1e-3 * np.random.default_rng(0).normal(size=len(wave))
    rest = audio.trim_silence(wave.astype(np.float32), rate, 40.0)
    begin = np.flatnonzero(wave.astype(np.float32) == rest[0])[0]
    np.testing.assert_array_equal(rest, wave[begin:][: len(rest)].astype(np.float32))
    # The first and the last window of 20 ms that hold some of it, and 20 ms more.
    assert 8000 - 640 <= begin <= 8000 - 320
    assert 12000 + 320 <= begin + len(rest) <= 12000 + 640
    # -60 dB of noise is a sound to 80 dB; 0 cuts nothing; nothing comes of nothing.
    assert len(audio.trim_silence(wave, rate, 80.0)) == len(wave)
    assert len(audio.trim_silence(wave, rate, 0)) == len(wave)
    assert len(audio.trim_silence(np.zeros(5000), rate, 40.0)) == 5000
    assert len(audio.trim_silence(wave[:100], rate, 40.0)) == 100


def test_files_are_16_bit_wav(tmp_path):
    wave = (0.5 * tone(0.1)).astype(np.float32)
    content = audio.encode_wav(wave, 16000)
    data, rate = soundfile.read(io.BytesIO(content), dtype="int16")
    assert rate == 16000 and content == audio.encode_wav(wave, 16000)
    assert np.abs(data - wave * 2**15).max() <= 1
    loud, _ = soundfile.read(io.BytesIO(audio.encode_wav(4 * wave, 16000)))
    assert loud.max() > 0.999 and loud.min() == -1  # clipped, not wrapped around
    (tmp_path / "a.wav").write_bytes(content)
    assert audio.is_whole_wav(tmp_path / "a.wav")
    for damaged in (content[:-1], content[:20], b"", b"X" + content[1:]):
        (tmp_path / "a.wav").write_bytes(damaged)
        assert not audio.is_whole_wav(tmp_path / "a.wav")
    assert not audio.is_whole_wav(tmp_path / "none.wav")


def make_config(**fields):
    config = configuration.default_config("data", "prompts", "generate")
    for name, value in fields.items():
        config.generate[name] = value
    configuration.validate(config)
    return config


def test_float16_is_refused(tmp_path):
    config = make_config(dtype="float16")
    for program in (speech.run, speech.dry_run):
        with pytest.raises(UserError, match="'float16': speech takes float32 or bf"):
            program(config, tmp_path)


def test_who_speaks():
    config = make_config()
    assert speech.speaker_numbers(config, "class_prompt", 5) == (0,)
    # Also the last one, which the original never drew.
    assert speech.speaker_numbers(config, "multi_speaker", 5) == (0, 1, 2, 3, 4)
    config = make_config(speakers=(4, 2))
    for method in ("class_prompt", "multi_speaker"):
        assert speech.speaker_numbers(config, method, 5) == (4, 2)
    with pytest.raises(UserError, match=r"speakers = \(4, 2\): takes numbers below 4"):
        speech.speaker_numbers(config, "class_prompt", 4)


class FormulaSpeech:
    """Waveforms from text, speaker and key, in place of a pipeline."""

    tokenizer = staticmethod(knows_every_word)

    class vocoder:
        class config:
            sampling_rate = 8000

    @classmethod
    def from_pretrained(cls, model, vocoder, dtype):
        assert (model, vocoder, dtype) == ("formula", "formula too", "float32")
        return cls()

    def __call__(self, texts, vectors, *, key, threshold, max_seconds):
        assert (threshold, max_seconds) == (0.25, 2.0)
        lengths = np.array([100 * len(text) for text in texts], np.int32)
        waves = np.zeros((len(texts), 2000), np.float32)
        for wave, length, vector in zip(waves, lengths, vectors, strict=True):
            wave[:length] = vector[0]
        return waves, lengths


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "TextToSpeech", FormulaSpeech)
    np.save(tmp_path / "v.npy", np.array([[0.125], [0.25], [0.5]], np.float32))
    config = make_config(
        model="formula",
        vocoder="formula too",
        speaker_vectors=str(tmp_path / "v.npy"),
        stop_threshold=0.25,
        max_seconds=2.0,
        trim_db=0.0,
        samples_per_class="20",
        batch_size=8,
        preview_per_class=0,
    )
    config.prompts.classes = ("yes", "guten Tag")
    config.prompts.template = "{name}"
    config.prompts.method = "multi_speaker"
    return config


def test_any_words_by_every_speaker(config, tmp_path, capsys):
    prompts.run(config, tmp_path)
    speech.run(config, tmp_path)
    lines = artifacts.read_manifest(tmp_path / "synthetic")
    assert len(lines) == 40 and {line.speaker for line in lines} == {0, 1, 2}
    for line in lines:
        path = tmp_path / "synthetic" / line.file
        wave, rate = soundfile.read(path)
        assert rate == 8000 and len(wave) == 100 * len(line.prompt)
        assert (wave == (0.125, 0.25, 0.5)[line.speaker]).all()
        assert line.prompt == line.label and line.guidance is None
    assert lines[1].file == "guten_Tag/guten_Tag_00000.wav"
    assert not (tmp_path / "synthetic" / "preview.png").exists()
    out = capsys.readouterr().out
    assert "40 clips of 2 classes, 20 a class, by formula: 3 speaker vectors" in out
    for field, value, message in (
        ("speakers", (0,), r"speakers = 'all 3', now it is \[0\]"),
        ("trim_db", 30.0, "trim_db = 0.0, now it is 30.0"),
        ("vocoder", "x", "vocoder = 'formula too', now it is 'x'"),
        ("max_seconds", 3.0, "max_seconds = 2.0, now it is 3.0"),
        ("stop_threshold", 0.5, "stop_threshold = 0.25, now it is 0.5"),
    ):
        changed = config.copy_and_resolve_references()
        changed.generate[field] = value
        with pytest.raises(UserError, match=message):
            speech.run(changed, tmp_path)
    np.save(tmp_path / "v.npy", np.array([[0.125], [0.25], [0.25]], np.float32))
    with pytest.raises(UserError, match="another content of the speaker vectors"):
        speech.run(config, tmp_path)


def test_noise_of_the_ratio_in_the_manifest(config, tmp_path):
    config.generate.snr_db = (0.0, 20.0)
    config.generate.trim_db = 0.0
    prompts.run(config, tmp_path)
    speech.run(config, tmp_path)
    folder = tmp_path / "synthetic"
    lines = artifacts.read_manifest(folder)
    assert {line.snr_db for line in lines} == {0.0, 20.0}
    noises = []
    for line in lines:
        wave, _ = soundfile.read(folder / line.file)
        signal = (0.125, 0.25, 0.5)[line.speaker]
        noise = wave - signal
        if np.abs(wave).max() < 0.999:  # what is louder is cut off
            ratio = 10 * np.log10(signal**2 / np.square(noise).mean())
            assert ratio == pytest.approx(line.snr_db, abs=0.1)
            noises.append(noise[:20] / noise[:20].std())
    # Each clip has noise of its own.
    alike = np.corrcoef(noises) - np.eye(len(noises))
    assert len(noises) > 10 and np.abs(alike).max() < 0.95


def test_one_speaker_for_class_prompts(config, tmp_path):
    config.prompts.method = "class_prompt"
    prompts.run(config, tmp_path)
    speech.run(config, tmp_path)
    lines = artifacts.read_manifest(tmp_path / "synthetic")
    assert {line.speaker for line in lines} == {0}


def test_samples_relative_to_the_real_recordings(tmp_path):
    """Of fsdd: 2 of "three" and 1 of "seven" in training, spoken as words."""
    for digit, take in ((3, 5), (3, 9), (7, 5), (7, 0)):
        path = tmp_path / "recordings" / f"{digit}_anna_{take}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, tone(0.1, 8000, 400.0), 8000)
    config = make_config(model="formula", samples_per_class="3x")
    config.data.source, config.data.folder = "fsdd", str(tmp_path)
    config.prompts.classes = ("3", "7")
    prompts.run(config, tmp_path)
    sentences, _ = samples.read_prompts(tmp_path, config)
    assert sentences == {"3": ["three"], "7": ["seven"]}
    assert samples.samples_per_class(config, list(sentences)) == {"3": 6, "7": 3}
    with pytest.raises(UserError, match="but fsdd has no 5: give a number"):
        samples.samples_per_class(config, ["3", "5"])


# Models that ship their vocoder and speakers ----------------------------------------


@pytest.fixture
def voices(tiny_speech, tmp_path, monkeypatch):
    """A shipped model "voices" with a vocoder and two speakers of its own."""
    folder = tmp_path / "assets" / "voices"
    shutil.copytree(tiny_speech / "model", folder)
    shutil.copytree(tiny_speech / "vocoder", folder / "vocoder")
    (folder / "speakers").mkdir()
    for number, name in enumerate(("bella", "anton")):
        vector = np.random.default_rng(number).normal(size=4).astype(np.float32)
        np.save(folder / "speakers" / f"{name}.npy", vector)
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "assets")
    return folder


def test_the_shipped_model_brings_its_vocoder_and_its_speakers(
    voices, tmp_path, capsys
):
    config = make_config(
        **{"model": "voices", "samples_per_class": "4", "batch_size": 4},
        **{"max_seconds": 0.1, "preview_per_class": 0},
    )
    config.prompts.classes, config.prompts.template = ("no", "bird"), "{name}"
    config.prompts.method = "multi_speaker"
    prompts.run(config, tmp_path)
    speech.run(config, tmp_path)
    assert "by voices: 2 speaker vectors" in capsys.readouterr().out
    lines = artifacts.read_manifest(tmp_path / "synthetic")
    # By name: number 0 is anton.
    speakers = read_speakers(voices / "speakers")
    assert speakers.names == ("anton", "bella")
    pipeline = TextToSpeech.from_pretrained(voices, voices / "vocoder")
    waves, lengths = pipeline(
        [line.prompt for line in lines[:4]],
        speakers.vectors[[line.speaker for line in lines[:4]]],
        key=samples.keys(lines[:4]),
        max_seconds=0.1,
    )
    for line, wave, length in zip(lines, waves, lengths, strict=False):
        expected = audio.trim_silence(np.asarray(wave[:length]), 16000, 40.0)
        made, _ = soundfile.read(tmp_path / "synthetic" / line.file, dtype="int16")
        assert np.abs(made - np.rint(expected * 32767)).max() <= 2

    # What is named goes before what the model brings.
    np.save(tmp_path / "v.npy", speakers.vectors[:1])
    config.generate.speaker_vectors = str(tmp_path / "v.npy")
    with pytest.raises(UserError, match="speakers = 'all 2', now it is 'all 1'"):
        speech.run(config, tmp_path)
    config.generate.speaker_vectors = ""
    path = voices / "vocoder" / "config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="another content of the model's files"):
        speech.run(config, tmp_path)


def test_models_without_their_own_parts_take_those_of_the_release(tiny_speech):
    assert text_to_speech.vocoder_of(tiny_speech / "model") == (
        "microsoft/speecht5_hifigan"
    )
    assert speakers_of(tiny_speech / "model") == "Matthijs/cmu-arctic-xvectors"


def test_models_of_another_kind_are_refused(voices, tmp_path):
    config = make_config(model="glyphs", samples_per_class="1")
    config.prompts.classes = ("no",)
    prompts.run(config, tmp_path)
    shutil.copytree(ASSETS / "glyphs", voices.parent / "glyphs")
    with pytest.raises(
        UserError, match="glyphs: StableDiffusionPipeline is no SpeechT"
    ):
        speech.run(config, tmp_path)
    config.generate.model = "voices"
    with pytest.raises(UserError, match="voices: speecht5 is no Stable Diffusion pipe"):
        images.run(config, tmp_path)
