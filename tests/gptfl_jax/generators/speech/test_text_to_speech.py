"""SpeechT5 and the pipeline around it."""

import jax
import jax.numpy as jnp
import numpy as np
import ported_models
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech import speecht5, text_to_speech
from gptfl_jax.generators.speech.speecht5 import SpeechT5Config, SpeechT5ForTextToSpeech
from gptfl_jax.released import hub


@pytest.fixture(scope="module")
def reference():
    return ported_models.load("speech")


@pytest.fixture(scope="module")
def pipeline(reference):
    return ported_models.text_to_speech(reference)


def test_stops_mels_and_waves_equal_torch(reference, pipeline):
    """A batch of five texts and speakers against one at a time."""
    assert reference["mel_lengths"].tolist() == [2, 24, 4, 180, 10]
    ported_models.check_speech(reference, pipeline)


def test_another_threshold_ends_elsewhere(reference, pipeline):
    later = ported_models.load("speech_later")
    assert later["mel_lengths"].tolist() == [16, 280, 4, 180, 20]
    ported_models.check_speech(later, pipeline)


def test_a_sample_depends_on_its_own_text_speaker_and_key(reference, pipeline):
    speakers = reference["speakers"]
    keys = jax.random.split(jax.random.key(0), 3)
    waves, lengths = pipeline(["0", "4", "2"], speakers[:3], key=keys, threshold=0.95)
    waves = np.asarray(waves)
    for order in ([2, 0, 1], [1, 1, 0]):
        rows = np.array(order)
        texts = [["0", "4", "2"][row] for row in order]
        again, n = pipeline(texts, speakers[rows], key=keys[rows], threshold=0.95)
        np.testing.assert_array_equal(n, lengths[rows])
        width = min(again.shape[1], waves.shape[1])
        np.testing.assert_allclose(
            np.asarray(again)[:, :width], waves[rows, :width], rtol=0, atol=1e-4
        )
    # Another voice, another key: other speech.
    other, _ = pipeline(
        ["0"] * 3, speakers[:3], key=keys[np.zeros(3, int)], threshold=9.0
    )
    assert np.abs(other[1] - other[0]).max() > 1e-3
    other, _ = pipeline(["0"] * 3, speakers[0], key=jax.random.key(1), threshold=9.0)
    assert np.abs(other[1] - other[0]).max() > 1e-3
    # A vector's length is not heard.
    loud, _ = pipeline(["0"] * 3, 5 * speakers[0], key=jax.random.key(1), threshold=9.0)
    np.testing.assert_allclose(loud, other, rtol=0, atol=1e-4)


def test_dropout_keeps_its_share(reference, monkeypatch):
    """Half of the units, others in each step and for each sample."""
    seen = []
    original = SpeechT5ForTextToSpeech.step

    def step(self, frame, speakers, keep, *rest):
        jax.debug.callback(lambda keep: seen.append(np.array(keep)), keep)
        return original(self, frame, speakers, keep, *rest)

    monkeypatch.setattr(SpeechT5ForTextToSpeech, "step", step)
    text_to_speech._programs.cache_clear()
    pipeline = ported_models.text_to_speech(reference)
    pipeline.spectrograms(
        ["1", "1"], reference["speakers"][:2], key=jax.random.key(3), threshold=9.0
    )
    jax.effects_barrier()
    text_to_speech._programs.cache_clear()
    kept = np.stack(seen)
    assert kept.shape == (140, 2, 2, 8)
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    assert len({row.tobytes() for row in kept.reshape(-1, 2, 8)}) > 270


def test_lengths_are_capped(reference, pipeline):
    def lengths(**options):
        return pipeline.spectrograms(
            ["0", "1"], reference["speakers"][:2], key=jax.random.key(0), **options
        )[1].tolist()

    # 16 samples a frame at 16 kHz, 2 frames a step: 1.5 steps are 1.
    assert lengths(threshold=9.0, max_seconds=0.003) == [2, 2]
    assert lengths(threshold=9.0, max_seconds=0.1) == [80, 100]
    assert lengths(threshold=9.0, max_frames_per_token=3) == [12, 42]
    assert lengths(threshold=9.0, max_frames_per_token=0.1) == [2, 2]
    # No more steps than there are positions.
    assert lengths(threshold=9.0, max_frames_per_token=1e4) == [300, 300]
    with pytest.raises(UserError, match="max_seconds = 0.001: takes at least 0.002"):
        lengths(max_seconds=0.001)


def test_what_is_lowered_takes_the_arrays_of_a_run(reference, pipeline):
    speakers = reference["speakers"][:2]
    tokens = pipeline._tokenize(["0", "1"])
    lowered = text_to_speech.lower(
        pipeline.model,
        pipeline.vocoder,
        batch=2,
        letters=tokens.shape[1] - 1,
        max_seconds=0.01,
    )
    same = jax.tree.map(
        lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype),
        dict(pipeline.variables),
        lowered.variables,
    )
    assert jax.tree.all(same)
    assert lowered.flops["steps of speech"][1] == 5
    inputs = text_to_speech._Inputs(
        tokens,
        np.float32(speakers),
        np.int32([5, 5]),
        jax.random.split(jax.random.key(0)),
        None,
    )
    run = lowered.programs["speaking"].compile()
    mels, steps = run(pipeline.variables["model"], inputs, np.float32(9))
    run = lowered.programs["refining"].compile()
    mels = run(pipeline.variables["model"], mels, 2 * steps)
    expected, lengths = pipeline.spectrograms(
        ["0", "1"],
        speakers,
        key=inputs.keys,
        threshold=9.0,
        max_seconds=0.01,
    )
    assert lengths.tolist() == [10, 10]
    np.testing.assert_allclose(mels, expected, rtol=0, atol=1e-5)


def test_arguments_that_do_not_fit_are_refused(reference, pipeline):
    key, speaker = jax.random.key(0), reference["speakers"][0]
    for error, message, arguments, options in (
        (ValueError, "a list of at least one", ("1", speaker), {"key": key}),
        (ValueError, "a list of at least one", ([], speaker), {"key": key}),
        (ValueError, "takes a key", (["1"], speaker), {}),
        (
            ValueError,
            "2 keys for 1 texts",
            (["1"], speaker),
            {"key": jax.random.split(key)},
        ),
        (
            ValueError,
            r"keep of shape \(1, 3, 2, 8\): takes \(1 or 1, 140 or more, 2, 8\)",
            (["1"], speaker),
            {"keep": np.ones((1, 3, 2, 8))},
        ),
        (
            UserError,
            r"of shape \(4,\): the speech model takes one of 5 numbers",
            (["1"], speaker[:4]),
            {"key": key},
        ),
    ):
        with pytest.raises(error, match=message):
            pipeline(*arguments, **options)


class _Characters:
    """A tokenizer of 20 letters; 3 is what it does not know."""

    unk_token_id = 3

    def __call__(self, texts):
        rows = [[ord(c) - 93 if c.islower() else 3 for c in text] for text in texts]
        return type("Tokens", (), {"input_ids": rows})


def test_texts_that_cannot_be_spoken_are_refused(reference):
    pipeline = ported_models.text_to_speech(reference)
    pipeline.tokenizer = _Characters()
    speaker, key = reference["speakers"][0], jax.random.key(0)
    for text, message in (
        ("a7", "text 'a7' holds characters that the speech model does not"),
        ("a" * 41, "has 41 tokens, the speech model takes 40"),
        ("az", "makes token 29, but the speech model knows only 20"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline(["b", text], speaker, key=key)


def test_padding_is_not_heard(reference):
    """Of the encoder's features, those of real tokens do not see the padding."""
    network = SpeechT5ForTextToSpeech(
        SpeechT5Config.from_json(reference["configs"]["model"])
    )
    variables = ported_models.text_to_speech(reference).variables["model"]
    encode = jax.jit(
        lambda tokens, mask: network.apply(variables, tokens, mask, method="encode")
    )
    tokens = jnp.array([[5, 6, 7, 1, 1], [5, 6, 7, 9, 9]])
    mask = jnp.arange(5) < 3
    features = encode(tokens, jnp.stack([mask, mask]))
    np.testing.assert_allclose(features[0, :3], features[1, :3], atol=1e-6)
    seen = encode(tokens, jnp.ones((2, 5), bool))
    assert np.abs(seen[0, :3] - seen[1, :3]).max() > 1e-3


def test_number_of_parameters_of_the_release():
    params = speecht5.shapes(SpeechT5ForTextToSpeech(SpeechT5Config()))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 144_431_684


def test_older_files_are_understood():
    assert speecht5.current_name("speecht5.encoder.prenet.encode_positions.pe") is None
    counter = "speech_decoder_postnet.layers.0.batch_norm.num_batches_tracked"
    assert speecht5.current_name(counter) is None
    assert speecht5.current_name("speecht5.a.weight") == "speecht5.a.weight"


def test_config():
    config = SpeechT5Config(hidden_size=24, reduction_factor=3)
    assert SpeechT5Config.from_json(config.to_json()) == config
    for options, message in (
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"architectures": ["SpeechT5ForSpeechToText"]}, "SpeechT5ForSpeechToText"),
        ({"model_type": "bert"}, "model_type = 'bert'"),
    ):
        with pytest.raises(UserError, match=message):
            SpeechT5Config.from_json(options)


def test_networks_that_do_not_fit_are_refused(reference, pipeline):
    vocoder = pipeline.vocoder.clone(
        config=type(pipeline.vocoder.config)(model_in_dim=7)
    )
    with pytest.raises(UserError, match="reads 7 mel bands, but the speech model"):
        text_to_speech.TextToSpeech(pipeline.model, vocoder, {}, None)


def test_bfloat16(reference, pipeline):
    """The first frames, before rounding has led the two apart."""
    half = text_to_speech.TextToSpeech(
        pipeline.model.clone(dtype=jnp.bfloat16),
        pipeline.vocoder.clone(dtype=jnp.bfloat16),
        jax.tree.map(lambda x: x.astype(jnp.bfloat16), pipeline.variables),
        pipeline.tokenizer,
    )
    options = {"keep": reference["keep"][:1], "max_frames_per_token": 0.5}
    ours, exact = (
        each.spectrograms(["0"], reference["speakers"][0], threshold=9.0, **options)[0]
        for each in (half, pipeline)
    )
    assert ours.dtype == jnp.float32
    assert ported_models.relative_error(ours[:, :2], exact[:, :2]) < 0.05


def test_lengths_are_rounded_up_by_at_most_a_half():
    for length in range(1, 400):
        rounded = text_to_speech._rounded_up(length)
        assert length <= rounded <= max(16, 1.5 * length)
        assert text_to_speech._rounded_up(rounded) == rounded


def test_a_missing_package_of_the_tokenizer_is_named(tmp_path, monkeypatch):
    import transformers

    placeholder = type("SpeechT5Tokenizer", (), {"_backends": ["sentencepiece"]})
    monkeypatch.setattr(transformers, "SpeechT5Tokenizer", placeholder, raising=False)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="needs sentencepiece: pip install sentence"):
        hub.load_tokenizer(tmp_path, "SpeechT5Tokenizer")
