"""What the small text-to-image generator draws, and how well it can be read."""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PRNGKeyArray, UInt8
from tqdm.auto import tqdm

from gptfl_jax import artifacts, drawing
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.progress import say
from train.glyphs import prompts


def sample_digits(
    pipeline: StableDiffusion,
    key: PRNGKeyArray,
    count: int,
    num_steps: int,
    guidance_scale: float,
    batch_size: int = 250,
) -> tuple[UInt8[np.ndarray, "count 32 32 3"], Int[np.ndarray, " count"]]:
    """Handwritten digits of all weights and slants, light on dark; their labels."""
    looks = [
        (weight, slant)
        for weight in prompts.WEIGHTS[1:]
        for slant in prompts.SLANTS[1:]
    ]
    labels = np.arange(count) % 10
    texts = [
        prompts.prompt(
            int(label),
            "handwritten",
            *looks[i // 10 % len(looks)],
            "dark",
            prompts.FRAMINGS[1],
        )
        for i, label in enumerate(labels)
    ]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    pictures = [
        pipeline(
            texts[start : start + batch_size],
            key=keys[start : start + batch_size],
            num_steps=num_steps,
            guidance_scale=guidance_scale,
        )
        for start in tqdm(range(0, count, batch_size), desc="samples", mininterval=5)
    ]
    return np.concatenate(pictures), labels


def digits_accuracy(
    pictures: UInt8[np.ndarray, "count 32 32 3"], labels: Int[np.ndarray, " count"]
) -> dict[str, float]:
    """How well a classifier fitted on pictures alone reads real handwriting.

    A support vector machine on 8x8 grey block means, tested on the 1,797 digits that
    come with scikit-learn: on all, and on its first 11 and last 3 writing sessions. The
    last 3 are the test writers of `configs/digits.py`: nothing is chosen by them.
    """
    from sklearn.datasets import load_digits
    from sklearn.svm import SVC

    grey = pictures.astype(np.float32).mean(-1) / 255
    blocks = grey.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(len(grey), 64)
    classifier = SVC(C=5.0, gamma="scale").fit(blocks, labels)
    digits = load_digits()
    right = classifier.predict(digits.data / 16) == digits.target
    return {
        "accuracy": float(right.mean()),
        "accuracy_first_11_sessions": float(right[:1415].mean()),
        "accuracy_last_3_sessions": float(right[1415:].mean()),
    }


def save_sheet(
    path: pathlib.Path, pictures: UInt8[np.ndarray, "count 32 32 3"], columns: int
) -> None:
    """Pictures side by side in rows of `columns`, twice as large, as a PNG."""
    rows = len(pictures) // columns
    height, width = pictures.shape[1:3]
    whole = pictures[: rows * columns].reshape(rows, columns, height, width, 3)
    sheet = drawing.grid(whole, (2 * height, 2 * width))
    artifacts.write_bytes(path, drawing.encode_png(sheet))


def measure(
    workdir: pathlib.Path,
    pipeline: StableDiffusion,
    samples: int,
    sheet_key: PRNGKeyArray,
    test_key: PRNGKeyArray,
    *,
    num_steps: int,
    guidance_scale: float,
) -> None:
    """`samples.png` and `quality.json` of a model.

    Args:
        workdir: The run's folder.
        pipeline: The model as written, in float16.
        samples: For the measure; 0 for the picture alone.
        sheet_key: Of the pictures of `samples.png`.
        test_key: Of the pictures that the classifier learns from.
        num_steps: Of the solver.
        guidance_scale: Of the samples.
    """
    sampled = functools.partial(
        sample_digits, pipeline, num_steps=num_steps, guidance_scale=guidance_scale
    )
    pictures, labels = sampled(sheet_key, 180)
    order = np.argsort(labels, kind="stable")
    save_sheet(workdir / "samples.png", pictures[order], 18)
    if not samples:
        return
    start = time.perf_counter()
    pictures, labels = sampled(test_key, samples)
    milliseconds = 1e3 * (time.perf_counter() - start) / len(pictures)
    quality = digits_accuracy(pictures, labels)
    quality |= {"samples": len(pictures), "milliseconds_per_sample": milliseconds}
    artifacts.write_json(workdir / "quality.json", quality)
    say(
        f"a classifier trained only on {len(pictures)} samples reads "
        f"{quality['accuracy']:.1%} of scikit-learn's digits; "
        f"{milliseconds:.1f} ms a sample"
    )
