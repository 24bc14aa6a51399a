"""Training of the small voices, on tones: no synthesizer is needed."""

import io
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from PIL import Image
from safetensors.numpy import load_file

from gptfl_jax import artifacts, configuration
from gptfl_jax.data import synthesizers
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.generators.speakers import read_speakers
from gptfl_jax.generators.speech_spectrogram import log_mel
from gptfl_jax.generators.text_to_speech import TextToSpeech
from train import text_to_speech


def tiny_config(**fields):
    config = configuration.default_config("text_to_speech")
    settings = {
        "words": ("zero", "one", "cat"),
        "engines": ("hibari",),
        "max_frames": 16,
        "features": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "postnet_features": 4,
        "speaker_features": 4,
        "speech_steps": 4,
        "vocoder_channels": 8,
        "segment_frames": 8,
        "vocoder_batch_size": 2,
        "vocoder_steps": 3,
        "adversarial_steps": 2,
        "batch_size": 4,
        "checkpoint_every": 2,
        "log_every": 1,
        "test_samples": 0,
    }
    config.text_to_speech.update(settings | fields)
    configuration.validate(config)
    return config


@pytest.fixture(scope="module")
def corpus():
    """Words as tones, a pitch for each voice of hibari and a length for each word."""
    clips = [
        [
            0.3 * np.sin(0.05 * (voice + 3) * np.arange(1200 + 500 * word))
            for word in range(3)
        ]
        for voice in range(24)
    ]
    clips = [[clip.astype(np.float32) for clip in spoken] for spoken in clips]
    return text_to_speech.make_corpus(clips, 16, 4)


def test_clips_are_padded_to_whole_steps_and_long_ones_left_out():
    clips = [[np.full(n, 0.5, np.float32) for n in (256, 257, 600)], []]
    clips[1] = [np.full(n, -1, np.float32) for n in (1, 513, 1600)]
    made = text_to_speech.make_corpus(clips, 8, 4)
    # Hops rounded up, 2 of silence, and up to a multiple of 4; 1600 are 9 of 8.
    assert made.frames.tolist() == [4, 4, 8, 4, 8]
    assert made.words.tolist() == [0, 1, 2, 0, 1]
    assert made.voices.tolist() == [0, 0, 0, 1, 1]
    assert made.waves.shape == (5, 8 * 256)
    np.testing.assert_array_equal((made.waves != 0).sum(1), [256, 257, 600, 1, 513])
    assert made.waves[0, 0] == 16384 and made.waves[4, 0] == -32767


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="max_frames = 18: takes a multiple of .* 4"):
        tiny_config(max_frames=18)
    with pytest.raises(ConfigError, match="segment_frames = 20: takes at most"):
        tiny_config(segment_frames=20)
    with pytest.raises(UserError, match="engines: no festival; there are espeak-ng"):
        text_to_speech.voices_of(
            tiny_config(engines=("festival", "flite")).text_to_speech
        )


def test_the_words_are_those_of_speech_commands_by_default():
    words = text_to_speech.words_of(tiny_config(words=()).text_to_speech)
    assert len(words) == 35 and set(words) > set(text_to_speech.DIGITS)
    assert "silence" not in words


def test_the_tokenizer_knows_letters(tmp_path):
    from transformers import SpeechT5Tokenizer

    tokenizer = text_to_speech.make_tokenizer(("seven", "three"), tmp_path)
    tokens = tokenizer("seven").input_ids
    assert len(set(tokens[1:6])) == 4  # s, e, v, e, n
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer("Seven").input_ids == tokens
    assert tokenizer.unk_token_id not in tokenizer("the quick brown jazz fox").input_ids
    assert tokenizer.unk_token_id in tokenizer("7").input_ids
    loaded = SpeechT5Tokenizer(str(tmp_path / "spm_char.model"))
    assert loaded("three").input_ids == tokenizer("three").input_ids
    table = text_to_speech.token_table(tokenizer, ("on", "seven"), 1)
    assert table[1].tolist() == tokens
    assert table[0].tolist() == [*tokenizer("on").input_ids, 1, 1, 1]


def test_the_speech_loss_by_hand():
    """Two clips of 4 and 2 frames of one band, two frames a step."""
    made = types.SimpleNamespace(
        frames=jnp.asarray([[1.0, 1, 1, 1], [2, 2, 9, 9]])[:, :, None],
        stop=jnp.asarray([[0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.1, 0.1]]),
    )
    given = {}

    class Model:
        config = types.SimpleNamespace(
            reduction_factor=2,
            pad_token_id=1,
            speech_decoder_prenet_layers=2,
            speech_decoder_prenet_units=3,
            speech_decoder_prenet_dropout=0.5,
        )

        def apply(self, variables, *arguments, method):
            given[method] = arguments
            return {"steps": (made, None), "refine": made.frames + 1}.get(method)

    mels = jnp.asarray([[3.0, 4, 5, 6], [2, 2, 0, 0]])[:, :, None]
    tokens = jnp.asarray([[5, 6, 2], [5, 2, 1]])
    speakers = jnp.arange(8.0).reshape(4, 2)
    loss = text_to_speech.speech_loss(
        Model(),
        {},
        {"model": {}, "speakers": speakers},
        (mels, jnp.asarray([4, 2]), tokens, jnp.asarray([3, 0])),
        jax.random.key(0),
    )
    before = (2 + 3 + 4 + 5 + 0 + 0) / 6
    after = (1 + 2 + 3 + 4 + 1 + 1) / 6
    # Frames 2 and 3 of the first clip and both of the second belong to a last step.
    entropy = -(4 * np.log(0.5) + 2 * np.log(0.8)) / 6
    np.testing.assert_allclose(loss, before + after + entropy, rtol=1e-6)
    frames, voices, keep = given["steps"][:3]
    assert frames[:, :, 0].tolist() == [[0, 4], [0, 2]]  # the last of the step before
    assert voices.tolist() == [[6, 7], [0, 1]]
    assert keep.shape == (2, 2, 2, 3)
    assert given["encode"][1].tolist() == [[True] * 3, [True, True, False]]


def test_the_spectral_loss_by_hand():
    generator = np.random.default_rng(0)
    made, real = generator.standard_normal((2, 1, 2048)).astype(np.float32) / 10
    made, real = jnp.asarray(made), jnp.asarray(real)
    assert text_to_speech.spectral_loss(real, real) == 0
    expected = np.abs(log_mel(made, 1e-5) - log_mel(real, 1e-5)).mean()
    for window, hop in ((1024, 256), (512, 128), (256, 64)):
        spectra = []
        for wave in (made, real):
            padded = np.pad(np.asarray(wave[0], float), window // 2, mode="reflect")
            parts = [
                np.fft.rfft(
                    padded[start : start + window]
                    * np.sin(np.pi * np.arange(window) / window) ** 2
                )
                for start in range(0, 2048 + 1, hop)
            ]
            spectra.append(np.abs(parts))
        ours, theirs = spectra
        expected += np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) / 3
        expected += np.abs(np.log(ours / theirs)).mean() / 3
    loss = text_to_speech.spectral_loss(made, real)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_vocoder_and_rival_learn_apart():
    """Each one's gradient is that of its own loss, the other held still."""
    rival = text_to_speech.Discriminator(features=(2, 3))
    real = jax.random.normal(jax.random.key(0), (2, 600)) / 10
    mels = jax.random.normal(jax.random.key(1), (2, 600)) / 10
    params = {
        "vocoder": jnp.float32(0.7),
        "rival": rival.init(jax.random.key(2), real)["params"],
    }

    def vocode(gain, mels):
        return gain * mels

    def loss(params, weight=0.0):
        return text_to_speech.adversarial_loss(
            vocode, rival, weight, params, (mels, real), jax.random.key(3)
        )

    def judged(params, wave):
        return rival.apply({"params": params}, wave)

    def of_rival(params):
        true, false = judged(params, real)[0], judged(params, 0.7 * mels)[0]
        return sum(
            ((1 - t) ** 2).mean() + (f**2).mean()
            for t, f in zip(true, false, strict=True)
        )

    def of_vocoder(gain):
        scores, values = judged(params["rival"], gain * mels)
        _, targets = judged(params["rival"], real)
        alike = sum(jnp.abs(a - b).mean() for a, b in zip(values, targets, strict=True))
        return sum(((1 - s) ** 2).mean() for s in scores) + 2 * alike

    gradient = jax.grad(loss)(params)
    for one, other in zip(
        jax.tree.leaves(gradient["rival"]),
        jax.tree.leaves(jax.grad(of_rival)(params["rival"])),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    expected = jax.grad(of_vocoder)(jnp.float32(0.7))
    np.testing.assert_allclose(gradient["vocoder"], expected, rtol=1e-4)
    # The spectra add theirs.
    spectral = text_to_speech.spectral_loss(0.7 * mels, real)
    np.testing.assert_allclose(
        loss(params, 5.0) - loss(params), 5 * spectral, rtol=1e-4
    )


def test_a_discriminator_sees_periods():
    """Clips that differ by one sample in `period` differ in its rows alone."""
    rival = text_to_speech.Discriminator(features=(2,))
    wave = jax.random.normal(jax.random.key(0), (1, 210))
    params = rival.init(jax.random.key(1), wave)
    judgements, values = rival.apply(params, wave)
    assert [len(x) for x in judgements] == [2, 3, 5, 7]
    assert [x.shape[1] for x in judgements] == [105, 70, 42, 30]
    assert len(values) == 4
    changed, _ = rival.apply(params, wave.at[0, 4::5].add(1.0))
    differ = jnp.abs(changed[2] - judgements[2]).max((1, 2))
    assert (differ > 0).tolist() == [False] * 4 + [True]


@pytest.mark.long
def test_a_run_writes_a_voice(tmp_path, corpus):
    buffer = io.BytesIO()
    np.savez(buffer, **corpus._asdict())
    artifacts.write_bytes(tmp_path / "corpus.npz", buffer.getvalue())
    text_to_speech.run(tiny_config(), tmp_path)
    folder = tmp_path / "model"
    for part in (folder, folder / "vocoder"):
        weights = load_file(part / "model.safetensors").values()
        assert {w.dtype for w in weights if w.dtype.kind == "f"} == {
            np.dtype(np.float16)
        }
    for phase, steps in (("speech", 4), ("vocoder", 3), ("adversarial", 2)):
        lines = artifacts.read_metrics(tmp_path / phase / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(1, steps + 1))

    speakers = read_speakers(folder / "speakers")
    voices = [v.name for v in synthesizers.voices() if v.engine == "hibari"]
    assert sorted(speakers.names) == sorted(voices)
    np.testing.assert_allclose(np.linalg.norm(speakers.vectors, axis=1), 1, rtol=1e-6)
    pipeline = TextToSpeech.from_pretrained(folder, folder / "vocoder")
    waves, lengths = pipeline(["one"], speakers.vectors[:1], key=jax.random.key(0))
    assert waves.shape[1] >= lengths[0] > 0
    statistics = json.loads((folder / "vocoder" / "config.json").read_text())
    assert statistics["upsample_rates"] == [8, 8, 4]
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (2 * 8 * 64, 2 * 4 * 80)
    clips = sorted((tmp_path / "samples").glob("*.wav"))
    assert len(clips) == 32
    for clip in clips:
        assert soundfile.info(clip).samplerate == 16000
    # Started again it finds all phases done, and writes the same.
    before = (folder / "model.safetensors").read_bytes()
    text_to_speech.run(tiny_config(), tmp_path)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.long
def test_a_reader_learns_what_it_is_told():
    """Ten glides as digits: all read rightly after some epochs."""
    time = np.arange(6400) / 16000
    clips = []
    for i in range(200):
        start, end = 300 + 300 * (i % 10), 3000 - 250 * (i % 10)
        phase = 2 * np.pi * (start + (end - start) * time / 0.8) * time
        noise = 0.02 * np.random.default_rng(i).standard_normal(6400)
        clips.append((0.3 * np.sin(phase) + noise).astype(np.float32))
    inputs = text_to_speech.features_of(clips)
    labels = (np.arange(200) % 10).astype(np.int32)
    reader = text_to_speech.train_reader(inputs, labels, jax.random.key(0), 25)
    assert text_to_speech.accuracy(reader, inputs, labels) > 0.95
