"""Stage 1b: synthetic images of every class, in `<workdir>/synthetic`.

    python -m generate.images --config=configs/digits.py --workdir=runs/digits

Needs `<workdir>/prompts.json` of generate.prompts. Started again after an interruption
it goes on where it stopped; asked for more samples it adds them. A sample depends on
the config, its class and its number alone, so batch size, devices and processes may
change in between.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from generate import samples
from generate.samples import samples_per_class
from gptfl_jax import drawing, planning, user_files
from gptfl_jax.artifacts import Sample
from gptfl_jax.data.images import read_picture
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import folders
from gptfl_jax.generators.pictures import sampling
from gptfl_jax.generators.pictures.stable_diffusion import (
    SOLVER,
    StableDiffusion,
    networks_of,
)
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import say
from gptfl_jax.released import lora


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the samples that are missing, and the contact sheet."""
    prepare(config)
    prompts, made_prompts = samples.read_prompts(workdir, config)
    counts = samples_per_class(config, list(prompts))
    guidance = samples.guidance_scales(config, made_prompts)
    choices = [{"guidance": scale, "lora": _lora(config)} for scale in guidance]
    planned = samples.plan(config, prompts, counts, choices, ".png")
    if config.generate.lora:
        added = lora.licence_of(config.generate.lora)
        planned = [_under(sample, added) for sample in planned]
    samples.make(
        config,
        workdir,
        samples.Work(
            "images",
            planned,
            _settings(config, prompts, guidance),
            samples.manner(config, guidance),
            is_whole_png,
            lambda: _load(config, workdir, planned),
            draw_preview,
        ),
    )


def _load(
    config: ConfigDict, workdir: pathlib.Path, planned: Sequence[Sample]
) -> samples.Maker:
    options = config.generate
    pipeline = StableDiffusion.from_pretrained(
        options.model,
        dtype=options.dtype,
        solver=options.solver,
        lora=options.lora or None,
        lora_scale=options.lora_scale,
    )
    # Where the scales do not differ, a scale of 1 for all takes half of the work.
    drawn = len({sample.guidance for sample in planned}) > 1

    def make_batch(rows: Sequence[Sample]) -> UInt8[jax.Array, "rows height width 3"]:
        scales = [sample.guidance for sample in rows]
        return pipeline(
            [sample.prompt for sample in rows],
            key=samples.keys(rows),
            num_steps=options.num_steps,
            guidance_scale=scales if drawn else scales[0],
            negative_prompts=options.negative_prompt,
            height=options.height or None,
            width=options.width or None,
        )

    # Light compression, as zlib would slow a GPU down.
    encode = functools.partial(drawing.encode_png, compress_level=1)
    return samples.Maker(
        make_batch,
        encode,
        pipeline.tokenizer,
        lambda: plan(config, workdir, counted_only=True),
    )


def is_whole_png(path: pathlib.Path) -> bool:
    """Whether a file begins and ends as a PNG does."""
    try:
        with user_files.open_plain(path) as file:
            begin = file.read(8)
            file.seek(-12, 2)
            return begin == b"\x89PNG\r\n\x1a\n" and file.read()[4:8] == b"IEND"
    except (OSError, user_files.Unreadable):
        return False


def draw_preview(shown: Mapping[str, Sequence[pathlib.Path]]) -> samples.Preview:
    """The first images of each class as one picture."""
    rows, broken = [], []
    for name, files in shown.items():
        pictures = []
        for file in files:
            read = read_picture(file, image_size=0, channels=3)
            if read.pixels is None:
                broken.append(f"{file}: {read.error}")
            else:
                pictures.append(Image.fromarray(read.pixels))
        rows.append((name, pictures))
    return samples.Preview(drawing.contact_sheet(rows), broken)


def _settings(
    config: ConfigDict, prompts: Mapping[str, Sequence[str]], guidance: Sequence[float]
) -> dict[str, Any]:
    """What the pixels of a sample depend on, by the names a refusal shows."""
    names = ("model", "solver", "num_steps", "negative_prompt")
    names += ("height", "width", "dtype")
    settings = samples.diffusion_settings(config, names, guidance, prompts)
    weights = config.generate.lora
    return settings | {
        "config.generate.lora": weights,
        "config.generate.lora_scale": config.generate.lora_scale if weights else None,
        "content of the LoRA weights": lora.digest(weights) if weights else None,
    }


def _lora(config: ConfigDict) -> str | None:
    """The LoRA weights, as the manifest names them."""
    options = config.generate
    return f"{options.lora}, scale {options.lora_scale:g}" if options.lora else None


def _under(sample: Sample, licence: str) -> Sample:
    """The sample, made under one more licence."""
    if licence == sample.licence:
        return sample
    return sample._replace(licence=f"{sample.licence}, {licence}")


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a run would take."""
    prepare(config)
    say(planning.table(plan(config, workdir)))


def plan(
    config: ConfigDict, workdir: pathlib.Path, counted_only: bool = False
) -> planning.Plan:
    """What a run takes: the networks by their config files, the pictures by the config.

    Args:
        counted_only: whether operations alone are of interest.

    Raises:
        UserError: the model is unknown, or the classes.
    """
    options = config.generate
    outline = samples.outline(config, workdir)
    guidance = samples.planned_guidance(config, outline)
    networks = networks_of(options.model, options.dtype)
    shape = networks.latent_shape(options.height or None, options.width or None)
    mesh = placement.mesh()
    guided = len(guidance) > 1 or guidance[0] > 1
    lowered = sampling.lower(
        networks,
        shape,
        mesh,
        batch=outline.batch,
        num_steps=options.num_steps,
        guided=guided,
        solver=folders.solver_of(options.solver, SOLVER),
        counted_only=counted_only,
    )
    factor = networks.vae.config.factor
    sizes = {
        name: planning.amount(planning.parameters(tree))
        for name, tree in lowered.params.items()
    }
    facts = [
        (
            "model",
            f"{options.model} in {options.dtype}: UNet {sizes['unet']}, text encoder "
            f"{sizes['text_encoder']}, autoencoder {sizes['vae']} parameters"
            + (f"; LoRA weights {_lora(config)}" if options.lora else ""),
        ),
        *outline.facts(config, "pictures"),
        (
            "sampling",
            f"{shape[0] * factor} x {shape[1] * factor} pixels, {options.num_steps} "
            f"steps, {'with' if guided else 'without'} guidance",
        ),
    ]
    smaller = "lower config.generate.batch_size, or height and width"
    return samples.diffusion_plan("generate.images", facts, lowered, outline, smaller)


def main() -> None:
    launch(
        run,
        sections=("data", "prompts", "generate"),
        dry_run=dry_run,
        then=samples.then,
    )


if __name__ == "__main__":
    main()
