"""Training of the small voices on words of free speech synthesizers.

A SpeechT5 in miniature learns to speak a list of words in the voice of each speaker of
the synthesizers (`gptfl_jax.data.synthesizers`), whose vectors it learns as well. A
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
import time
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import linen
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int16, Int32, PRNGKeyArray
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from gptfl_jax import artifacts, devices, labels, models, training
from gptfl_jax.data import audio, audio_sources, sources, synthesizers
from gptfl_jax.errors import UserError
from gptfl_jax.generators.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.generators.speakers import Speakers, read_speakers
from gptfl_jax.generators.speech_spectrogram import (
    HOP,
    NUM_MELS,
    SAMPLE_RATE_HZ,
    log_mel,
    magnitudes,
)
from gptfl_jax.generators.speecht5 import (
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    Step,
)
from gptfl_jax.generators.text_to_speech import TextToSpeech
from train import downstream, phases

DIGITS = tuple(labels.label_set("fsdd").phrases.values())

# Magnitude of a mel band that counts as silence: log10 is -5.
_FLOOR = 1e-5
# Frames of silence that a clip ends with, so that its end can be learned.
_SILENT_FRAMES = 2
# Windows and hops of the spectra that the vocoder is compared by, in samples.
_RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))
# What a discriminator reshapes waveforms by, in samples (arXiv 2010.05646, 2.3).
_PERIODS = (2, 3, 5, 7)
_SECTION = "text_to_speech"
# What the classifier hears that measures the quality: as much as a telephone carries.
HEARD = audio.FeatureSettings(**audio_sources.FSDD_FEATURES)

# Streams of random draws: fold_in(seed, stream).
_SPEECH_INIT, _SPEECH_DATA, _VOCODER_INIT, _VOCODER_DATA = range(4)
_TAUGHT, _RIVAL_INIT, _RIVAL_DATA, _SAMPLES, _TEST, _READER = range(4, 10)


class Corpus(NamedTuple):
    """Words spoken by synthesizers."""

    waves: Int16[np.ndarray, "clips samples"]
    """16-bit samples at 16 kHz, zeros behind the end."""
    frames: Int32[np.ndarray, " clips"]
    """Length of each clip in hops, its silent end included."""
    words: Int32[np.ndarray, " clips"]
    voices: Int32[np.ndarray, " clips"]


# --- Data ---------------------------------------------------------------------------


def words_of(settings: ConfigDict) -> tuple[str, ...]:
    """The words to speak; by default the 35 of Speech Commands, digits among them."""
    if settings.words:
        return tuple(settings.words)
    classes = labels.label_set("speech_commands").classes
    return tuple(word for word in classes if word != "silence")


def voices_of(settings: ConfigDict) -> tuple[synthesizers.Voice, ...]:
    """The synthesizers' voices that speak them.

    Raises:
      UserError: an engine that there is not.
    """
    unknown = sorted(set(settings.engines) - set(synthesizers.ENGINES))
    if unknown:
        raise UserError(
            f"config.{_SECTION}.engines: no {', '.join(unknown)}; there are "
            + ", ".join(synthesizers.ENGINES)
        )
    voices = synthesizers.voices()
    return tuple(v for v in voices if v.engine in settings.engines)


def make_corpus(
    clips: Sequence[Sequence[Float32[np.ndarray, "..."]]],
    most_frames: int,
    multiple: int,
) -> Corpus:
    """Puts clips, a list of words for each voice, into arrays.

    Clips of more than `most_frames` hops are left out; the length of the others is
    rounded up to a multiple of `multiple`.
    """
    waves, frames, words, voices = [], [], [], []
    for voice, spoken in enumerate(clips):
        for word, clip in enumerate(spoken):
            length = -(-len(clip) // HOP) + _SILENT_FRAMES
            length += -length % multiple
            if length > most_frames:
                continue
            wave = np.zeros(most_frames * HOP, np.int16)
            wave[: len(clip)] = np.round(clip * (2**15 - 1))
            waves.append(wave)
            frames.append(length)
            words.append(word)
            voices.append(voice)
    numbers = (np.asarray(x, np.int32) for x in (frames, words, voices))
    return Corpus(np.asarray(waves), *numbers)


def _load_corpus(workdir: pathlib.Path, settings: ConfigDict) -> Corpus:
    """The corpus, kept in the workdir so that a resumed run needs no synthesizer."""
    path = workdir / "corpus.npz"
    if not path.exists():
        words, voices = words_of(settings), voices_of(settings)
        clips = synthesizers.speak_all(words, voices)
        corpus = make_corpus(clips, settings.max_frames, settings.reduction_factor)
        asked, made = len(words) * len(voices), len(corpus.frames)
        print(
            f"{made:,} clips of {len(words)} words in {len(voices)} voices, "
            f"{corpus.frames.sum() * HOP / SAMPLE_RATE_HZ / 60:.0f} minutes; "
            f"{asked - made} left out, longer than {settings.max_frames} frames",
            flush=True,
        )
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **corpus._asdict())
        artifacts.write_bytes(path, buffer.getvalue())
    with np.load(path) as stored:
        return Corpus(*(stored[name] for name in Corpus._fields))


def spectrograms(corpus: Corpus) -> Float32[np.ndarray, "clips frames mels"]:
    """Log-mel spectrograms of all clips."""
    frames = corpus.waves.shape[1] // HOP

    @jax.jit
    def compute(waves):
        return log_mel(waves / 2**15, _FLOOR)[:, :frames]

    size = 256
    parts = [
        jax.device_get(compute(jnp.asarray(corpus.waves[start : start + size])))
        for start in range(0, len(corpus.waves), size)
    ]
    return np.concatenate(parts)


def make_tokenizer(words: Sequence[str], folder: pathlib.Path) -> Any:
    """A `SpeechT5Tokenizer` of letters, written to `folder`.

    Capitals are read as small letters.
    """
    import sentencepiece
    from transformers import SpeechT5Tokenizer

    text = [*words, "abcdefghijklmnopqrstuvwxyz", "don't"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        model_type="char",
        character_coverage=1.0,
        # 4 special tokens, the letters, the apostrophe, the beginning of a word.
        vocab_size=4 + 26 + 2,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        normalization_rule_name="nmt_nfkc_cf",
        minloglevel=2,
    )
    path = folder / "spm_char.model"
    artifacts.write_bytes(path, model.getvalue())
    return SpeechT5Tokenizer(str(path))


def token_table(
    tokenizer: Any, words: Sequence[str], padding: int
) -> Int32[np.ndarray, "words tokens"]:
    """Tokens of each word, filled up with `padding`."""
    rows = tokenizer(list(words)).input_ids
    table = np.full((len(rows), max(map(len, rows))), padding, np.int32)
    for row, filled in zip(rows, table, strict=True):
        filled[: len(row)] = row
    return table


# --- Models -------------------------------------------------------------------------


def make_model(settings: ConfigDict, tokenizer: Any) -> SpeechT5ForTextToSpeech:
    """The speech model in the sizes of the config."""
    features = settings.features
    return SpeechT5ForTextToSpeech(
        SpeechT5Config(
            vocab_size=len(tokenizer),
            hidden_size=features,
            encoder_layers=settings.encoder_layers,
            encoder_attention_heads=4,
            encoder_ffn_dim=4 * features,
            encoder_max_relative_position=16,
            decoder_layers=settings.decoder_layers,
            decoder_attention_heads=4,
            decoder_ffn_dim=4 * features,
            pad_token_id=tokenizer.pad_token_id,
            speech_decoder_prenet_units=features,
            speaker_embedding_dim=settings.speaker_features,
            speech_decoder_postnet_units=settings.postnet_features,
            reduction_factor=settings.reduction_factor,
            max_speech_positions=500,
            max_text_positions=100,
        )
    )


def make_vocoder(settings: ConfigDict) -> HifiGan:
    """The vocoder in the sizes of the config."""
    return HifiGan(
        HifiGanConfig(
            sampling_rate=SAMPLE_RATE_HZ,
            upsample_initial_channel=settings.vocoder_channels,
            upsample_rates=(8, 8, 4),
            upsample_kernel_sizes=(16, 16, 8),
            resblock_kernel_sizes=(3, 7),
            resblock_dilation_sizes=((1, 3), (1, 3)),
        )
    )


class Discriminator(linen.Module):
    """Tells made from real waveforms, by the samples of one period after the other.

    The multi-period discriminator of arXiv 2010.05646 in small.

    Attributes:
      features: channels of the convolutions; each but the last takes every third step.
    """

    features: tuple[int, ...] = (16, 32, 64, 64)

    @linen.compact
    def __call__(
        self, waves: Float[Array, "batch samples"]
    ) -> tuple[list[Float[Array, "..."]], list[Float[Array, "..."]]]:
        """A judgement for each period, 1 for real, and all values on the way to it."""
        judgements, values = [], []
        for period in _PERIODS:
            rest = -waves.shape[1] % period
            x = jnp.pad(waves, ((0, 0), (0, rest)), mode="reflect")
            x = x.reshape(len(x), -1, period).swapaxes(1, 2)
            x = x.reshape(-1, x.shape[2], 1)
            for i, features in enumerate(self.features):
                stride = 3 if i < len(self.features) - 1 else 1
                name = f"period_{period}_conv_{i}"
                x = linen.Conv(features, (5,), stride, name=name)(x)
                x = jax.nn.leaky_relu(x, 0.1)
                values.append(x)
            x = linen.Conv(1, (3,), name=f"period_{period}_judgement")(x)
            judgements.append(x)
        return judgements, values


# --- Losses -------------------------------------------------------------------------


def teach(
    model: SpeechT5ForTextToSpeech,
    variables: Any,
    speakers: Float[Array, "batch features"],
    mels: Float[Array, "batch frames mels"],
    lengths: Int[Array, " batch"],
    tokens: Int[Array, "batch length"],
    key: PRNGKeyArray,
) -> tuple[Step, Float[Array, "batch frames mels"]]:
    """What the model makes of texts when it is told the frames before each step.

    Args:
      model: the speech model.
      variables: its parameters and statistics.
      speakers: a vector for each clip's voice.
      mels: spectrograms.
      lengths: of each in frames.
      tokens: of the texts.
      key: of the prenet's dropout.

    Returns:
      the frames and ends of speech of all steps, and the refined frames.
    """
    config = model.config
    reduction = config.reduction_factor
    batch, frames, bands = mels.shape
    steps = frames // reduction

    def apply(method, *arguments):
        return model.apply(variables, *arguments, method=method)

    mask = tokens != config.pad_token_id
    text = apply("text", apply("encode", tokens, mask))
    before = mels[:, reduction - 1 :: reduction][:, : steps - 1]
    before = jnp.concatenate([jnp.zeros((batch, 1, bands)), before], 1)
    units = (config.speech_decoder_prenet_layers, config.speech_decoder_prenet_units)
    keep = jax.random.bernoulli(
        key, config.speech_decoder_prenet_dropout, (batch, steps, *units)
    )
    start = apply("start", batch, steps)
    made, _ = apply("steps", before, speakers, keep, start, text, mask, jnp.int32(0))
    return made, apply("refine", made.frames, lengths)


def speech_loss(
    model: SpeechT5ForTextToSpeech,
    statistics: Any,
    params: Any,
    examples: tuple[Array, Array, Array, Array],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """How far the model is from spectrograms when it knows the frames before.

    The absolute error of the spectrogram before and after its refinement, and the
    cross-entropy of the end of speech (Shen et al., arXiv 1712.05884, 2.2).

    Args:
      model: the speech model.
      statistics: of its postnet; they stay what they are.
      params: "model", and "speakers": a vector for each voice.
      examples: spectrograms [batch, frames, mels], their lengths in frames, tokens
        [batch, length], and numbers of voices.
      key: of the prenet's dropout.
    """
    mels, lengths, tokens, voices = examples
    variables = {"params": params["model"], **statistics}
    speakers = params["speakers"][voices]
    made, refined = teach(model, variables, speakers, mels, lengths, tokens, key)
    frames = jnp.arange(mels.shape[1])
    inside = (frames < lengths[:, None]).astype(jnp.float32)
    count = inside.sum()

    def distance(spectrograms):
        return (jnp.abs(spectrograms - mels).mean(-1) * inside).sum() / count

    ends = frames >= lengths[:, None] - model.config.reduction_factor
    stop = jnp.clip(made.stop, 1e-6, 1 - 1e-6)
    entropy = -jnp.where(ends, jnp.log(stop), jnp.log1p(-stop))
    return distance(made.frames) + distance(refined) + (entropy * inside).sum() / count


def spectral_loss(
    made: Float[Array, "batch samples"], real: Float[Array, "batch samples"]
) -> Float[Array, ""]:
    """Distance of log-mel spectrograms, and of spectra of several resolutions.

    The second is spectral convergence and the distance of the logarithms, as in
    Parallel WaveGAN (arXiv 1910.11480, 2.2).
    """
    loss = jnp.abs(log_mel(made, _FLOOR) - log_mel(real, _FLOOR)).mean()
    for window, hop in _RESOLUTIONS:
        ours, theirs = magnitudes(made, window, hop), magnitudes(real, window, hop)
        convergence = jnp.linalg.norm(theirs - ours) / jnp.linalg.norm(theirs)
        logarithms = jnp.log(jnp.maximum(ours, _FLOOR) / jnp.maximum(theirs, _FLOOR))
        loss += (convergence + jnp.abs(logarithms).mean()) / len(_RESOLUTIONS)
    return loss


def adversarial_loss(
    vocode: Any,
    rival: Discriminator,
    spectral_weight: float,
    params: Any,
    examples: tuple[Array, Array],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """The vocoder's loss and its rival's, each blind to the other's parameters.

    Least squares, the distance of the rival's values, and `spectral_loss`
    (arXiv 2010.05646, 2.4).

    Args:
      vocode: parameters and spectrograms -> waveforms.
      rival: what tells them from real ones.
      spectral_weight: of `spectral_loss`.
      params: "vocoder" and "rival".
      examples: spectrograms and their waveforms.
      key: unused; the loss draws nothing.
    """
    del key
    mels, real = examples
    made = vocode(params["vocoder"], mels)
    both = jnp.concatenate([real, jax.lax.stop_gradient(made)])
    judged, values = rival.apply({"params": params["rival"]}, both)

    def halves(x):
        # Periods are rows of their own: real ones come first.
        return jnp.split(x, 2)

    rival_loss = sum(
        ((1 - true) ** 2).mean() + (false**2).mean()
        for true, false in map(halves, judged)
    )
    fixed = jax.lax.stop_gradient(params["rival"])
    judged, ours = rival.apply({"params": fixed}, made)
    deceived = sum(((1 - x) ** 2).mean() for x in judged)
    alike = sum(
        jnp.abs(a - jax.lax.stop_gradient(halves(b)[0])).mean()
        for a, b in zip(ours, values, strict=True)
    )
    spectral = spectral_loss(made, real)
    return rival_loss + deceived + 2 * alike + spectral_weight * spectral


# --- Program ------------------------------------------------------------------------


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Speaks the words, trains the phases, writes the model and measures it."""
    settings = config.text_to_speech
    mesh = phases.data_mesh(_SECTION, settings)
    with artifacts.lock(workdir):
        artifacts.write_run_record(workdir, config)
        stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
        started = time.perf_counter()
        corpus = _load_corpus(workdir, settings)
        words, voices = words_of(settings), voices_of(settings)
        folder = workdir / "model"
        tokenizer = make_tokenizer(words, folder)
        mels = spectrograms(corpus)
        train = functools.partial(
            phases.train_phase,
            workdir=workdir,
            section=_SECTION,
            settings=settings,
            identity=phases.identity(config, _SECTION),
            mesh=mesh,
        )
        model = make_model(settings, tokenizer)
        table = token_table(tokenizer, words, model.config.pad_token_id)
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
        print(f"model written to {folder} after {seconds:.0f} s", flush=True)
        _measure(workdir, settings, stream, corpus, words, voices)


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
        loss=functools.partial(speech_loss, model, statistics),
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
    compiled = jax.jit(functools.partial(teach, model))
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
    vocoder = make_vocoder(settings)
    length = settings.segment_frames
    variables = vocoder.init(stream(_VOCODER_INIT), jnp.zeros((1, length, NUM_MELS)))
    inside = np.arange(mels.shape[1]) < corpus.frames[:, None]
    heard = mels[inside]
    statistics = {
        "statistics": {
            "mel_mean": jnp.asarray(heard.mean(0)),
            "mel_scale": jnp.asarray(heard.std(0)),
        }
    }

    def vocode(params, mels):
        return vocoder.apply({"params": params, **statistics}, mels)

    def batch(data, key):
        mels, waves, frames = data
        row_key, start_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (settings.vocoder_batch_size,), 0, len(mels))
        room = jnp.maximum(frames[rows] - length, 0)
        starts = jax.random.randint(start_key, rows.shape, 0, room + 1)

        def cut(row, start):
            mel = jax.lax.dynamic_slice_in_dim(mels[row], start, length)
            wave = jax.lax.dynamic_slice_in_dim(waves[row], start * HOP, length * HOP)
            return mel, wave / 2**15

        return jax.vmap(cut)(rows, starts)

    params = train(
        "vocoder",
        params=variables["params"],
        loss=lambda params, examples, key: spectral_loss(
            vocode(params, examples[0]), examples[1]
        ),
        data=(mels, corpus.waves, corpus.frames),
        batch=batch,
        key=stream(_VOCODER_DATA),
    )
    if settings.adversarial_steps:
        rival = Discriminator()
        waves = jnp.zeros((1, length * HOP))
        against = rival.init(stream(_RIVAL_INIT), waves)["params"]
        params = train(
            "adversarial",
            params={"vocoder": params, "rival": against},
            loss=functools.partial(
                adversarial_loss, vocode, rival, settings.spectral_weight
            ),
            data=(taught, corpus.waves, corpus.frames),
            batch=batch,
            key=stream(_RIVAL_DATA),
        )["vocoder"]
    return vocoder, {"params": params, **statistics}


def _write_speakers(
    path: pathlib.Path,
    voices: Sequence[synthesizers.Voice],
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


# --- Quality ------------------------------------------------------------------------


def digit_clips(
    corpus: Corpus, words: Sequence[str]
) -> tuple[list[Float32[np.ndarray, " samples"]], Int32[np.ndarray, " clips"]]:
    """The synthesizers' digits at 16 kHz, and their labels."""
    label = {word: number for number, word in enumerate(DIGITS)}
    rows = [i for i, word in enumerate(corpus.words) if words[word] in label]
    clips = [
        corpus.waves[i, : corpus.frames[i] * HOP].astype(np.float32) / 2**15
        for i in rows
    ]
    return clips, np.asarray([label[words[corpus.words[i]]] for i in rows], np.int32)


def spoken_digits(
    pipeline: TextToSpeech,
    speakers: Speakers,
    key: PRNGKeyArray,
    count: int,
    batch_size: int = 128,
) -> tuple[list[Float32[np.ndarray, " samples"]], Int32[np.ndarray, " clips"]]:
    """Digits that the voice speaks, evenly, each as a random speaker; their labels."""
    numbers = np.arange(count) % len(DIGITS)
    voice_key, sample_key = jax.random.split(key)
    shape = (count,)
    voices = jax.random.randint(voice_key, shape, 0, len(speakers.names))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(sample_key, jnp.arange(count))
    clips = []
    for start in tqdm(range(0, count, batch_size), desc="samples", mininterval=5):
        part = slice(start, start + batch_size)
        waves, lengths = pipeline(
            [DIGITS[number] for number in numbers[part]],
            speakers.vectors[np.asarray(voices[part])],
            key=keys[part],
            max_seconds=2.0,
        )
        waves = np.asarray(waves)
        clips += [w[:n] for w, n in zip(waves, lengths, strict=True)]
    return clips, numbers.astype(np.int32)


def features_of(
    clips: Sequence[Float[np.ndarray, " _samples"]],
) -> tuple[Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]]:
    """Features of clips at 16 kHz and of their lengths, as the reader takes them."""
    features = []
    for clip in clips:
        clip = audio.trim_silence(clip, SAMPLE_RATE_HZ, 40.0)
        wave = audio.resample(clip, SAMPLE_RATE_HZ, HEARD.sample_rate_hz)
        features.append(audio.compute(wave, HEARD))
    return audio.pad(features, HEARD.num_bands)


def _to_frames(inputs: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same features as an array of the most frames that there can be."""
    features, lengths = inputs
    most = 1 + round(HEARD.max_duration_s * HEARD.sample_rate_hz / HEARD.hop)
    room = [(0, 0), (0, most - features.shape[1]), (0, 0)]
    return np.pad(features, room), lengths


def train_reader(
    inputs: tuple[
        Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]
    ],
    labels: Int32[np.ndarray, " clips"],
    key: PRNGKeyArray,
    epochs: int,
) -> tuple[training.Learner, training.Variables]:
    """A small audio classifier of digits, trained with SpecAugment."""
    inputs = _to_frames(inputs)
    augmentation = audio.SpecAugment(
        tempo=0.2,
        warp=0.15,
        shift=8,
        time_masks=1,
        time_width=10,
        frequency_masks=1,
        frequency_width=8,
    )
    learner = training.make_learner(
        models.create("audio_cnn", len(DIGITS)),
        training.example_of(inputs),
        augmentation=augmentation,
    )
    size = 64
    steps = -(-len(labels) // size)
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(2e-3, epochs * steps), weight_decay=5e-4
    )
    mesh = devices.for_steps(size)
    split = NamedSharding(mesh, PartitionSpec("data"))
    order, advance = downstream.make_epoch(
        learner,
        optimizer,
        np.asarray(jax.random.key_data(key)),
        len(labels),
        size,
        split,
    )
    put = functools.partial(devices.replicate, mesh=mesh)
    state = put(training.init_state(learner, optimizer, key))
    examples = put((inputs, labels))
    for epoch in tqdm(range(epochs), desc="reader", mininterval=5):
        rows, carry = order(np.int32(epoch)), (state, put(np.float32(0)))
        for step in range(steps):
            carry = advance(carry, examples, rows, np.int32(step), 1)
        state, _ = carry
    return learner, state.variables


def accuracy(
    reader: tuple[training.Learner, training.Variables],
    inputs: tuple[
        Float32[np.ndarray, "clips frames bands"], Int32[np.ndarray, " clips"]
    ],
    labels: Int32[np.ndarray, " clips"],
) -> float:
    """Share of clips whose digit a reader of `train_reader` recognises."""
    inputs = _to_frames(inputs)
    return training.evaluate(*reader, inputs, labels, len(DIGITS)).accuracy


def _measure(workdir, settings, stream, corpus, words, voices) -> None:
    """`samples.png`, `samples/*.wav` and `quality.json` of the model as written."""
    folder = workdir / "model"
    pipeline = TextToSpeech.from_pretrained(folder, folder / "vocoder")
    speakers = read_speakers(folder / "speakers")
    _save_samples(workdir, pipeline, speakers, stream(_SAMPLES), corpus, words, voices)
    if not settings.test_samples:
        return
    start = time.perf_counter()
    clips, digits = spoken_digits(
        pipeline, speakers, stream(_TEST), settings.test_samples
    )
    milliseconds = 1e3 * (time.perf_counter() - start) / len(clips)
    epochs = settings.test_epochs
    original, their_digits = digit_clips(corpus, words)
    ours, theirs = features_of(clips), features_of(original)
    keys = jax.random.split(stream(_READER))
    by_theirs = train_reader(theirs, their_digits, keys[0], epochs)

    quality = {
        "samples": len(clips),
        "milliseconds_per_sample": milliseconds,
        "recognised_by_reader_of_synthesizers": accuracy(by_theirs, ours, digits),
    }
    if settings.test_folder:
        source = sources.load("fsdd", settings.test_folder, features=HEARD._asdict())
        recordings = [
            np.concatenate(parts)
            for parts in zip(source.train.inputs, source.test.inputs, strict=True)
        ]
        spoken = np.concatenate([source.train.labels, source.test.labels])
        by_ours = train_reader(ours, digits, keys[1], epochs)
        quality |= {
            "recordings": len(spoken),
            "recordings_read_by_reader_of_voice": accuracy(by_ours, recordings, spoken),
            "recordings_read_by_reader_of_synthesizers": accuracy(
                by_theirs, recordings, spoken
            ),
        }
    artifacts.write_json(workdir / "quality.json", quality)
    for name, value in quality.items():
        print(f"{name}: {value:.3g}")


def _save_samples(workdir, pipeline, speakers, key, corpus, words, voices) -> None:
    """Words of some synthesizers, and below them the same from the model."""
    numbers = np.linspace(0, len(corpus.frames) - 1, 16).astype(int)
    vectors = speakers.vectors[
        [speakers.names.index(voices[corpus.voices[i]].name) for i in numbers]
    ]
    texts = [words[corpus.words[i]] for i in numbers]
    waves, lengths = pipeline(texts, vectors, key=key, max_seconds=2.0)
    rows = []
    for i, (number, wave, length) in enumerate(
        zip(numbers, np.asarray(waves), lengths, strict=True)
    ):
        original = corpus.waves[number, : corpus.frames[number] * HOP] / 2**15
        name = f"{i:02d}-{texts[i]}-{voices[corpus.voices[number]].name}"
        for clip, who in ((original, "synthesizer"), (wave[:length], "voice")):
            path = workdir / "samples" / f"{name}-{who}.wav"
            artifacts.write_bytes(path, audio.encode_wav(clip, SAMPLE_RATE_HZ))
        rows.append((original.astype(np.float32), wave[:length]))
    artifacts.write_bytes(workdir / "samples.png", _sheet(rows))


def _sheet(rows: Sequence[tuple[np.ndarray, np.ndarray]], columns: int = 8) -> bytes:
    """Spectrograms of pairs of clips, one above the other, as a PNG."""
    width, height = 64, NUM_MELS
    sheet = np.zeros((2 * -(-len(rows) // columns), columns, height, width))
    for i, pair in enumerate(rows):
        for j, clip in enumerate(pair):
            mel = np.asarray(log_mel(jnp.asarray(clip)[None], _FLOOR))[0, :width].T
            place = sheet[2 * (i // columns) + j, i % columns]
            place[:, : mel.shape[1]] = (mel[::-1] / 6 + 5 / 6).clip(0, 1)
    picture = sheet.transpose(0, 2, 1, 3).reshape(-1, columns * width)
    colours = matplotlib.colormaps["magma"](picture, bytes=True)[..., :3]
    image = Image.fromarray(colours)
    image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
