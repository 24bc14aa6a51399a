"""What the small drums sound like, and how well it is recognised."""

import pathlib
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int32, PRNGKeyArray
from ml_collections import ConfigDict
from tqdm.auto import tqdm

from gptfl_jax import artifacts, drawing
from gptfl_jax.data import audio, sources
from gptfl_jax.data.sources import drumkits
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from gptfl_jax.generators.speech.spectrogram import SAMPLE_RATE_HZ
from gptfl_jax.progress import say
from train import readers
from train.drums import prompts, synthesis
from train.drums.corpus import FRAMES, Corpus, centroids_hz, durations_s
from train.drums.spectrogram import NUM_MELS, log_mel

CLASSES = prompts.LABELS.classes
# What the classifier hears that measures the quality.
HEARD = audio.FeatureSettings(**drumkits.FEATURES)


def sample_strokes(
    pipeline: AudioLDM,
    key: PRNGKeyArray,
    count: int,
    num_steps: int,
    guidance_scale: float,
    batch_size: int = 96,
) -> tuple[Float32[np.ndarray, "count samples"], Int32[np.ndarray, " count"]]:
    """Strokes of all classes and prompts, evenly, and their labels."""
    texts = prompts.all_prompts()
    each = len(texts) // len(CLASSES)
    numbers = np.arange(count)
    labels = numbers % len(CLASSES)
    said = labels * each + numbers // len(CLASSES) % each
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    parts = []
    for start in tqdm(range(0, count, batch_size), desc="samples", mininterval=5):
        rows = slice(start, start + batch_size)
        waves = pipeline(
            [texts[i] for i in said[rows]],
            key=keys[rows],
            num_steps=num_steps,
            guidance_scale=guidance_scale,
            duration_s=synthesis.LENGTH / SAMPLE_RATE_HZ,
        )
        parts.append(np.asarray(waves))
    return np.concatenate(parts), labels.astype(np.int32)


def features_of(waves: Sequence[Float[np.ndarray, " samples"]]) -> readers.Features:
    """Features of clips at 16 kHz, as the reader takes them."""
    return audio.pad([audio.compute(wave, HEARD) for wave in waves], HEARD.num_bands)


def train_reader(
    inputs: readers.Features,
    labels: Int32[np.ndarray, " clips"],
    key: PRNGKeyArray,
    epochs: int,
) -> readers.Reader:
    """A small audio classifier of strokes."""
    return readers.train_reader(inputs, labels, len(CLASSES), 4, key, epochs)


def measure(
    workdir: pathlib.Path,
    settings: ConfigDict,
    keys: tuple[PRNGKeyArray, PRNGKeyArray],
    corpus: Corpus,
) -> None:
    """`samples.png`, `samples/*.wav` and `quality.json` of the model as written.

    Args:
        workdir: The run's folder, with the model in `model/`.
        settings: The config's section `text_to_sound`.
        keys: Of the samples, and of the readers.
        corpus: What the model has learned from.
    """
    sample_key, reader_key = keys
    pipeline = AudioLDM.from_pretrained(workdir / "model")
    # Of each class eight for the sheet.
    count = max(settings.test_samples, 8 * len(CLASSES))
    start = time.perf_counter()
    made, labels = sample_strokes(
        pipeline,
        sample_key,
        count,
        settings.test_solver_steps,
        settings.test_guidance_scale,
    )
    milliseconds = 1e3 * (time.perf_counter() - start) / count
    _save_samples(workdir, made, labels, corpus)
    if not settings.test_samples:
        return
    waves = corpus.waves.astype(np.float32) / 2**15
    truth = corpus.attributes[:, 0]
    quality = {"samples": count, "milliseconds_per_sample": milliseconds}
    for number, name in enumerate(CLASSES):
        for what, clips in (
            ("corpus", waves[truth == number]),
            ("model", made[labels == number]),
        ):
            centroid = np.median(centroids_hz(clips))
            quality[f"{name}_centroid_hz_of_{what}"] = float(centroid)
            duration = np.median(durations_s(clips))
            quality[f"{name}_duration_s_of_{what}"] = float(duration)
    ours, theirs = features_of(made), features_of(waves)
    their_key, our_key = jax.random.split(reader_key)
    epochs = settings.test_epochs
    by_theirs = train_reader(theirs, truth, their_key, epochs)

    def right(reader, inputs, labels):
        return readers.accuracy(reader, inputs, labels, len(CLASSES))

    quality["recognised_by_reader_of_corpus"] = right(by_theirs, ours, labels)
    if settings.test_folder:
        source = sources.load("drumkits", settings.test_folder)
        kits = [
            np.concatenate(parts)
            for parts in zip(source.train.inputs, source.test.inputs, strict=True)
        ]
        struck = np.concatenate([source.train.labels, source.test.labels])
        by_ours = train_reader(ours, labels, our_key, epochs)
        quality |= {
            "strokes": len(struck),
            "strokes_read_by_reader_of_model": right(by_ours, tuple(kits), struck),
            "strokes_read_by_reader_of_corpus": right(by_theirs, tuple(kits), struck),
        }
    artifacts.write_json(workdir / "quality.json", quality)
    for name, value in quality.items():
        say(f"{name}: {value:.3g}")


def _save_samples(workdir, made, labels, corpus) -> None:
    """Strokes of the corpus, and below them as many from the model, class by class."""
    sheet = np.zeros((2 * len(CLASSES), 8, NUM_MELS, FRAMES))
    for number, name in enumerate(CLASSES):
        rows = np.flatnonzero(corpus.attributes[:, 0] == number)
        chosen = rows[np.linspace(0, len(rows) - 1, 8).astype(int)]
        places = np.flatnonzero(labels == number)
        places = places[np.linspace(0, len(places) - 1, 8).astype(int)]
        strokes = corpus.waves[chosen].astype(np.float32) / 2**15
        for i, (who, clips) in enumerate(
            (("corpus", strokes), ("model", made[places]))
        ):
            for j, clip in enumerate(clips):
                path = workdir / "samples" / f"{name}-{j}-{who}.wav"
                artifacts.write_bytes(path, audio.encode_wav(clip, SAMPLE_RATE_HZ))
            mels = np.asarray(log_mel(jnp.asarray(clips)))[:, :FRAMES]
            pictures = mels.swapaxes(1, 2)[:, ::-1]
            sheet[2 * number + i] = (pictures / 3.5 + 3 / 3.5).clip(0, 1)
    import matplotlib  # slow to import

    colours = matplotlib.colormaps["magma"](sheet, bytes=True)[..., :3]
    size = 2 * NUM_MELS, 2 * FRAMES
    picture = drawing.encode_png(drawing.grid(colours, size))
    artifacts.write_bytes(workdir / "samples.png", picture)
