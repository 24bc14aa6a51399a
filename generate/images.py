"""Stage 1b: synthetic images of every class, in `<workdir>/synthetic`.

    python -m generate.images --config=configs/digits.py --workdir=runs/digits

Needs `<workdir>/prompts.json` of generate.prompts. Started again after an interruption
it goes on where it stopped; asked for more samples it adds them. A sample depends on
the config, its class and its number alone, so batch size, devices and processes may
change in between.
"""

import contextlib
import hashlib
import io
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from generate import sample_folder
from generate.prompts import settings as prompt_settings
from gptfl_jax import artifacts, hub, prompting
from gptfl_jax.artifacts import Sample
from gptfl_jax.configuration import UserError
from gptfl_jax.data import sources
from gptfl_jax.generators.stable_diffusion import StableDiffusion
from gptfl_jax.launch import launch


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the samples that are missing, and the contact sheet."""
    prompts, made_prompts = read_prompts(workdir, config)
    counts = samples_per_class(config, list(prompts))
    guidance = guidance_scales(config, made_prompts)
    planned = plan(config, prompts, counts, guidance)
    folder = sample_folder.SampleFolder(
        workdir / "synthetic",
        planned,
        _settings(config, prompts, guidance),
        is_whole_png,
    )
    start = time.monotonic()
    with artifacts.lock(workdir):
        made = folder.open()
        _announce(planned, counts, made, guidance, config)
        if len(made) < len(planned):
            artifacts.write_run_record(folder.folder, config)
            make_missing(config, folder, made)
        folder.close()
        if jax.process_index() == 0:
            _finish(config, folder, len(planned) - len(made), time.monotonic() - start)


def read_prompts(
    workdir: pathlib.Path, config: ConfigDict
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Reads prompts.json.

    Returns:
      the prompts of each class, and how they were made.

    Raises:
      UserError: it is missing, is not what generate.prompts writes, or was made with
        other `config.prompts`.
    """
    command = f"python -m generate.prompts --config=... --workdir={workdir}"
    path = artifacts.require(workdir / "prompts.json", command)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        prompts, made = content["prompts"], content.get("made", {})
        made_with = made.get("config", {})
        usable = isinstance(made_with, dict) and len(prompts) > 0
        for sentences in prompts.values():
            usable &= isinstance(sentences, list) and len(sentences) > 0
            usable &= all(isinstance(sentence, str) for sentence in sentences)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"{path} holds no prompts by class: make it with `{command}`")
    for name, value in json.loads(json.dumps(prompt_settings(config))).items():
        if made_with.get(name, value) != value:
            raise UserError(
                f"{path} was made with config.{name} = {made_with[name]!r}, now it is "
                f"{value!r}: put it back, or make the prompts again with `{command}`"
            )
    return prompts, made


def samples_per_class(config: ConfigDict, classes: Sequence[str]) -> dict[str, int]:
    """How many samples each class gets, in the order of `classes`.

    `config.generate.samples_per_class` is a number, or as "3x" a multiple of the
    class's examples in the real training set, rounded, at least 1.

    Raises:
      UserError: a multiple is asked for, and a class is not in the real data.
    """
    wanted = str(config.generate.samples_per_class)
    if not wanted.endswith("x"):
        return dict.fromkeys(classes, int(wanted))
    data = config.data
    train = sources.load(
        data.source,
        data.folder,
        image_size=data.image_size,
        channels=data.channels,
        **data.options,
    ).train
    per_label = np.bincount(train.labels, minlength=train.num_classes)
    real = dict(zip(train.class_names, per_label.tolist(), strict=True))
    unknown = [name for name in classes if not real.get(name)]
    if unknown:
        raise UserError(
            f"config.generate.samples_per_class = {wanted!r} is relative to the real "
            f"training set, but {data.source} has no {', '.join(unknown)}: give a "
            "number"
        )
    ratio = float(wanted.removesuffix("x"))
    return {name: max(1, math.floor(ratio * real[name] + 0.5)) for name in classes}


def guidance_scales(
    config: ConfigDict, made_prompts: Mapping[str, Any]
) -> tuple[float, ...]:
    """The guidance scales that each sample's is drawn from.

    The config's choices; where it has none, those that the prompt method stands for
    (ucg); else the one of `guidance_scale`.
    """
    choices = config.generate.guidance_choices or made_prompts.get("guidance_choices")
    return tuple(map(float, choices or (config.generate.guidance_scale,)))


def plan(
    config: ConfigDict,
    prompts: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
    guidance: Sequence[float],
) -> list[Sample]:
    """All samples in the order they are made and listed.

    Every class's sample 0 comes first, then every class's sample 1: an unfinished
    folder holds about as many of each class.
    """
    key = jax.random.key(config.seed)
    folders = sample_folder.folder_names(list(prompts))
    by_class = []
    for name, count in counts.items():
        draws = prompting.draw(key, name, count, len(prompts[name]), len(guidance))
        rows = zip(*(column.tolist() for column in draws), strict=True)
        by_class.append(
            [
                Sample(
                    file=f"{folders[name]}/{folders[name]}_{index:05d}.png",
                    label=name,
                    prompt=prompts[name][prompt],
                    seed=seed,
                    guidance=guidance[scale],
                    model=config.generate.model,
                )
                for index, (prompt, scale, seed) in enumerate(rows)
            ]
        )
    rounds = itertools.zip_longest(*by_class)
    return [sample for each in rounds for sample in each if sample is not None]


def make_missing(
    config: ConfigDict, folder: sample_folder.SampleFolder, made: set[str]
) -> None:
    """Makes this process's share of the samples that are not in `made`."""
    batches = share(folder.planned, config.generate.batch_size)
    unfinished = [b for b in batches if any(s.file not in made for s in b)]
    if not unfinished:
        return
    options = config.generate
    pipeline = StableDiffusion.from_pretrained(options.model, dtype=options.dtype)
    drawn = len({sample.guidance for sample in folder.planned}) > 1
    total = sum(map(len, batches))
    missing = sum(sample.file not in made for batch in unfinished for sample in batch)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(_progress_bar(total, total - missing))
        preview = _EarlyPreview(config, folder)

        def on_written(samples: Sequence[Sample]) -> None:
            bar.update(len(samples))
            preview.update()

        writer = stack.enter_context(
            sample_folder.SampleWriter(folder.folder, encode_png, on_written)
        )
        for batch in unfinished:
            images = make_batch(config, pipeline, batch, len(batches[0]), drawn)
            rows = [i for i, sample in enumerate(batch) if sample.file not in made]
            writer.put([batch[row] for row in rows], rows, images)


def share(planned: Sequence[Sample], batch_size: int) -> list[Sequence[Sample]]:
    """The batches of this process: every process_count-th one.

    Batches are cut from the whole plan, not from what is missing: a sample then has
    the same place in the same batch in an interrupted run as in another, and its
    pixels cannot differ in a rounding.
    """
    processes = jax.process_count()
    size = min(math.ceil(batch_size / processes), math.ceil(len(planned) / processes))
    batches = [planned[i : i + size] for i in range(0, len(planned), size)]
    return batches[jax.process_index() :: processes]


def make_batch(
    config: ConfigDict,
    pipeline: StableDiffusion,
    batch: Sequence[Sample],
    size: int,
    drawn: bool,
) -> UInt8[jax.Array, "size height width 3"]:
    """The images of a batch, filled up to `size` with its last sample.

    Args:
      drawn: whether the plan's guidance scales differ; where they do not, a scale of 1
        for all takes half of the work.
    """
    rows = [*batch, *[batch[-1]] * (size - len(batch))]
    scales = [sample.guidance for sample in rows]
    options = config.generate
    return pipeline(
        [sample.prompt for sample in rows],
        key=jax.vmap(jax.random.key)(np.array([s.seed for s in rows], np.uint32)),
        num_steps=options.num_steps,
        guidance_scale=scales if drawn else scales[0],
        negative_prompts=options.negative_prompt,
        height=options.height or None,
        width=options.width or None,
    )


def encode_png(image: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """PNG of an RGB image; light compression, as zlib would slow a GPU down."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def is_whole_png(path: pathlib.Path) -> bool:
    """Whether a file begins and ends as a PNG does."""
    try:
        with open(path, "rb") as file:
            begin = file.read(8)
            file.seek(-12, 2)
            return begin == b"\x89PNG\r\n\x1a\n" and file.read()[4:8] == b"IEND"
    except OSError:
        return False


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], tile: int = 64
) -> Image.Image:
    """Images in rows, each with the name of its class before it.

    Small images are enlarged by a whole factor without smoothing, large ones shrunk,
    to tiles of `tile` to 2 x `tile` pixels. More than 25 classes go side by side.
    """
    largest = max(max(image.size) for _, images in rows for image in images)
    side = largest * max(1, tile // largest) if largest < 2 * tile else 2 * tile
    font = ImageFont.load_default(size=14)
    names = [name if len(name) <= 28 else f"{name[:27]}\u2026" for name, _ in rows]
    label_width = math.ceil(max(font.getlength(name) for name in names)) + 16
    gap = 2
    columns = math.ceil(len(rows) / 25)
    per_column = math.ceil(len(rows) / columns)
    column_width = label_width + max(len(images) for _, images in rows) * (side + gap)
    size = (columns * column_width, per_column * (side + gap) + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, (_, images)) in enumerate(zip(names, rows, strict=True)):
        column, row = divmod(number, per_column)
        x, y = column * column_width, row * (side + gap) + gap
        draw.text((x + 8, y + side // 2), name, fill="black", font=font, anchor="lm")
        for position, image in enumerate(images):
            smooth = Image.Resampling.BOX if max(image.size) > side else 0
            scale = side / max(image.size)
            size = tuple(max(1, round(length * scale)) for length in image.size)
            place = (x + label_width + position * (side + gap), y)
            sheet.paste(image.resize(size, smooth), place)
    return sheet


def write_preview(config: ConfigDict, folder: sample_folder.SampleFolder) -> None:
    """Writes `preview.png`, the first samples of each class."""
    rows: dict[str, list[Image.Image]] = {}
    for sample in _previewed(config, folder):
        with Image.open(folder.folder / sample.file) as image:
            rows.setdefault(sample.label, []).append(image.convert("RGB"))
    if rows:
        file = io.BytesIO()
        contact_sheet(list(rows.items())).save(file, "PNG")
        artifacts.write_bytes(folder.folder / "preview.png", file.getvalue())


def _previewed(config: ConfigDict, folder: sample_folder.SampleFolder) -> list[Sample]:
    most = config.generate.preview_per_class
    seen: dict[str, int] = {}
    chosen = []
    for sample in folder.planned:
        seen[sample.label] = seen.get(sample.label, 0) + 1
        if seen[sample.label] <= most:
            chosen.append(sample)
    return chosen


class _EarlyPreview:
    """Writes the contact sheet as soon as its samples are there."""

    def __init__(self, config: ConfigDict, folder: sample_folder.SampleFolder):
        self._config, self._folder = config, folder
        self._waiting = {sample.file for sample in _previewed(config, folder)}

    def update(self) -> None:
        if self._waiting and jax.process_index() == 0:
            there = {f for f in self._waiting if (self._folder.folder / f).exists()}
            self._waiting -= there
            if not self._waiting:
                write_preview(self._config, self._folder)


def _settings(
    config: ConfigDict, prompts: Mapping[str, Sequence[str]], guidance: Sequence[float]
) -> dict[str, Any]:
    """What the pixels of a sample depend on, by the names a refusal shows."""
    options = config.generate
    settings: dict[str, Any] = {"config.seed": config.seed}
    for name in ("model", "num_steps", "negative_prompt", "height", "width", "dtype"):
        settings[f"config.generate.{name}"] = options[name]
    settings["guidance scales"] = list(guidance)
    settings["content of the model's files"] = hub.model_digest(options.model)
    for name, sentences in prompts.items():
        content = json.dumps(sentences).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        settings[f"list of prompts for class {name!r}"] = digest
    return settings


def _progress_bar(total: int, made: int) -> tqdm:
    """Images made of this process's share, images a second, time left."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=made,
        desc="images",
        unit=" images",
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
        "[{elapsed}, {remaining} left, {rate_noinv_fmt}]",
        disable=jax.process_index() != 0,
        # In a log file every refresh is a line.
        mininterval=0.2 if terminal else 10.0,
        dynamic_ncols=terminal,
    )


def _announce(
    planned: Sequence[Sample],
    counts: Mapping[str, int],
    made: set[str],
    guidance: Sequence[float],
    config: ConfigDict,
) -> None:
    if jax.process_index() != 0:
        return
    low, high = min(counts.values()), max(counts.values())
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    scales = ", ".join(f"{scale:g}" for scale in guidance)
    drawn = "guidance" if len(guidance) == 1 else "guidance drawn from"
    text = (
        f"{len(planned):,} images of {len(counts)} classes, {each} a class, by "
        f"{config.generate.model}: {config.generate.num_steps} steps, {drawn} {scales}"
    )
    if made:
        text += f"; {len(made):,} are there already"
    print(text, flush=True)


def _finish(
    config: ConfigDict, folder: sample_folder.SampleFolder, made: int, seconds: float
) -> None:
    write_preview(config, folder)
    text = f"{len(folder.planned):,} images in {folder.folder}"
    if made:
        part = "" if made == len(folder.planned) else f"{made:,} of them "
        text += f", {part}made in {seconds:.0f} s"
    if config.generate.preview_per_class:
        text += f"; a look at them: {folder.folder / 'preview.png'}"
    print(text, flush=True)


def main() -> None:
    launch(run, sections=("data", "prompts", "generate"))


if __name__ == "__main__":
    main()
