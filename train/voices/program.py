"""Training of the small voices on words of free speech synthesizers.

A SpeechT5 in miniature learns to speak a list of words in the voice of each speaker of
the synthesizers (`synthesizers.py`), whose vectors it learns as well. A
HiFi-GAN vocoder learns to make waveforms of the synthesizers' spectrograms by spectra
alone, then of the speech model's, against discriminators too (arXiv 2010.05646, 2.2 and
4.4). No recording is read for training.

Written to the workdir: `model/` in the format of transformers and float16, with the
vocoder in `model/vocoder` and the speakers' vectors in `model/speakers`;
`samples.png` (synthesizer above voice), `samples/*.wav`, `metrics.jsonl` and
checkpoints of the three phases, `quality.json`.
"""

import functools
import io
import pathlib
import tempfile
import time
import zipfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict

from gptfl_jax import artifacts, planning
from gptfl_jax.generators.speech.spectrogram import (
    HOP,
    NUM_MELS,
    log_mel,
)
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from gptfl_jax.progress import say
from train import phases, vocoders
from train.voices import losses, networks, quality
from train.voices.corpus import (
    FLOOR,
    Corpus,
    load_corpus,
    load_held_out,
    spectrograms,
    voices_of,
    words_of,
)
from train.voices.synthesizers import Voice

_SECTION = "text_to_speech"
# Streams of random draws: fold_in(seed, stream).
_SPEECH_INIT, _SPEECH_DATA, _VOCODER_INIT, _VOCODER_DATA = range(4)
_TAUGHT, _RIVAL_INIT, _RIVAL_DATA, _SAMPLES, _TEST, _READER = range(4, 10)


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Speaks the words, trains the phases, writes the model and measures it."""
    settings = config.text_to_speech
    mesh = phases.data_mesh(_SECTION, settings)
    with artifacts.lock(workdir):
        artifacts.write_run_record(workdir, config)
        stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
        started = time.perf_counter()
        corpus = load_corpus(workdir, settings)
        held_out = load_held_out(workdir, settings)
        words, voices = words_of(settings), voices_of(settings)
        folder = workdir / "model"
        tokenizer = networks.make_tokenizer(words, folder)
        mels = spectrograms(corpus)
        train = phases.trainer(config, _SECTION, workdir, mesh)
        model = networks.make_model(settings, tokenizer)
        table = networks.token_table(tokenizer, words, model.config.pad_token_id)
        speech, speakers = _train_speech(
            train, settings, stream, model, table, len(voices), corpus, mels
        )
        taught = _teach_all(
            model, speech, speakers, corpus, mels, table, stream(_TAUGHT)
        )
        vocoder, vocoder_variables = _train_vocoder(
            train, settings, stream, corpus, mels, taught
        )
        pipeline = TextToSpeech(
            model, vocoder, {"model": speech, "vocoder": vocoder_variables}, tokenizer
        )
        pipeline.save_pretrained(folder, folder / "vocoder", dtype=jnp.float16)
        _write_speakers(folder / "speakers" / "voices.zip", voices, speakers)
        seconds = time.perf_counter() - started
        say(f"model written to {folder} after {seconds:.0f} s")
        keys = stream(_SAMPLES), stream(_TEST), stream(_READER)
        quality.measure(workdir, settings, keys, corpus, held_out, words, voices)


def plan(config: ConfigDict) -> planning.Plan:
    """What a run takes, if every voice speaks every word as long as may be."""
    settings = config.text_to_speech
    mesh = phases.data_mesh(_SECTION, settings)
    stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
    words, voices = words_of(settings), voices_of(settings)
    clips, frames = len(words) * len(voices), settings.max_frames
    number = np.zeros(clips, np.int32)
    nothing = np.zeros((), np.int16)
    corpus = Corpus(
        np.broadcast_to(nothing, (clips, frames * HOP)), number + 1, number, number
    )
    mels = np.broadcast_to(np.float32(0), (clips, frames, NUM_MELS))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = networks.make_tokenizer(words, pathlib.Path(folder))
    train = phases.Rehearsal(_SECTION, settings, mesh)
    model = networks.make_model(settings, tokenizer)
    table = networks.token_table(tokenizer, words, model.config.pad_token_id)
    _train_speech(train, settings, stream, model, table, len(voices), corpus, mels)
    _train_vocoder(train, settings, stream, corpus, mels, mels)
    text = f"at most {clips:,} clips: {len(words)} words by {len(voices)} voices"
    return train.plan([("data", text)])


def _train_speech(train, settings, stream, model, table, num_voices, corpus, mels):
    """The speech model's variables, and the voices' vectors."""
    model_key, speaker_key = jax.random.split(stream(_SPEECH_INIT))
    features = settings.speaker_features
    variables = jax.jit(model.init)(
        model_key, jnp.asarray(table[:1]), jnp.ones((1, features))
    )
    statistics = {"batch_stats": variables["batch_stats"]}
    speakers = jax.random.normal(speaker_key, (num_voices, features))

    def batch(data, key):
        mels, frames, words, voices, table = data
        rows = jax.random.randint(key, (settings.batch_size,), 0, len(mels))
        return mels[rows], frames[rows], table[words[rows]], voices[rows]

    params = train(
        "speech",
        params={"model": variables["params"], "speakers": speakers},
        loss=functools.partial(losses.speech_loss, model, statistics),
        data=(mels, corpus.frames, corpus.words, corpus.voices, table),
        batch=batch,
        key=stream(_SPEECH_DATA),
    )
    # As the model uses them: only the direction counts.
    speakers = params["speakers"]
    speakers = speakers / np.linalg.norm(speakers, axis=1, keepdims=True)
    return {"params": params["model"], **statistics}, speakers


def _teach_all(model, variables, speakers, corpus, mels, table, key):
    """The spectrograms that the speech model makes of each clip, in its time."""
    compiled = jax.jit(functools.partial(losses.teach, model))
    parts, size = [], 256
    for start in range(0, len(mels), size):
        rows = np.arange(start, start + size).clip(max=len(mels) - 1)
        _, refined = compiled(
            *(
                variables,
                speakers[corpus.voices[rows]],
                mels[rows],
                corpus.frames[rows],
            ),
            *(table[corpus.words[rows]], jax.random.fold_in(key, start)),
        )
        parts.append(jax.device_get(refined)[: len(mels) - start])
    # Behind the end is silence, not zeros.
    inside = np.arange(mels.shape[1]) < corpus.frames[:, None]
    return np.where(inside[..., None], np.concatenate(parts), mels)


def _train_vocoder(train, settings, stream, corpus, mels, taught):
    """The vocoder and its variables."""
    vocoder = networks.make_vocoder(settings)
    streams = _VOCODER_INIT, _VOCODER_DATA, _RIVAL_INIT, _RIVAL_DATA
    variables = vocoders.train_vocoder(
        train,
        settings,
        vocoders.Streams(*map(stream, streams)),
        vocoder,
        functools.partial(log_mel, floor=FLOOR),
        vocoders.Clips(mels, corpus.waves, corpus.frames),
        taught,
    )
    return vocoder, variables


def _write_speakers(
    path: pathlib.Path,
    voices: Sequence[Voice],
    vectors: Float32[np.ndarray, "voices features"],
) -> None:
    """An archive with a `.npy` file for each voice."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for voice, vector in zip(voices, vectors, strict=True):
            content = io.BytesIO()
            np.save(content, vector.astype(np.float32))
            # Without the time of day, which would change the bytes.
            member = zipfile.ZipInfo(f"{voice.name}.npy", (1980, 1, 1, 0, 0, 0))
            file.writestr(member, content.getvalue(), zipfile.ZIP_DEFLATED)
    artifacts.write_bytes(path, archive.getvalue())
