"""Distillation of a Stable Diffusion to few steps without guidance, as LoRA weights.

The teacher draws samples in many steps with guidance (`targets.py`); the student, the
same UNet with low-rank updates (`low_rank.py`), learns to take the same ways in few.
No picture is needed, only prompts.

Written to the workdir: `trajectories/`, `lora/pytorch_lora_weights.safetensors` for
`config.generate.lora`, metrics and checkpoints of the training; and, of digits,
`samples.png` and `quality.json`.
"""

import functools
import io
import json
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from gptfl_jax import artifacts, interruption, planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators.pictures.sampling import Networks
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.progress import Progress, say
from gptfl_jax.released import hub, lora
from train import phases
from train.few_steps import low_rank, targets
from train.glyphs import prompts, quality

# Streams of random draws: fold_in(seed, stream).
_PROMPTS, _NOISE, _INIT, _DATA, _SHEET, _TEST = range(6)
_SECTION = "few_steps"
# Samples that the teacher draws at once, and a file holds.
_ROWS = 256


class Lessons(NamedTuple):
    """What the student learns from: of every sample the places and outputs."""

    places: Float[Array | np.ndarray, "samples steps height width channels"]
    outputs: Float[Array | np.ndarray, "samples steps height width channels"]
    tokens: Int[Array | np.ndarray, "samples length"]


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Samples, trains, writes the LoRA weights and measures them."""
    settings = config.few_steps
    mesh = phases.data_mesh(_SECTION, settings)
    with artifacts.lock(workdir):
        artifacts.write_run_record(workdir, config)
        stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
        pipeline = StableDiffusion.from_pretrained(settings.model)
        started = time.perf_counter()
        lessons = _lessons(config, workdir, stream, pipeline)
        train = phases.trainer(config, _SECTION, workdir, mesh)
        updates = _train(train, settings, stream, pipeline, lessons)
        weights = low_rank.to_torch(updates, "unet")
        weights = {name: value.astype(np.float16) for name, value in weights.items()}
        hub.write_weights(workdir / "lora" / lora.FILE, weights)
        seconds = time.perf_counter() - started
        say(f"LoRA weights written to {workdir / 'lora'} after {seconds:.0f} s")
        if not settings.prompts:
            student = StableDiffusion.from_pretrained(
                settings.model, lora=workdir / "lora"
            )
            quality.measure(
                workdir,
                student,
                settings.test_samples,
                stream(_SHEET),
                stream(_TEST),
                num_steps=settings.steps,
                guidance_scale=1.0,
            )


def plan(config: ConfigDict) -> planning.Plan:
    """What a run takes.

    Raises:
        UserError: the model is not there.
    """
    settings = config.few_steps
    mesh = phases.data_mesh(_SECTION, settings)
    stream = functools.partial(jax.random.fold_in, jax.random.key(config.seed))
    pipeline = StableDiffusion.from_pretrained(settings.model)
    latents = (settings.trajectories, settings.steps, *pipeline.networks.latent_shape())
    length = pipeline.tokenize([""]).shape[1]
    lessons = Lessons(
        jax.ShapeDtypeStruct(latents, jnp.float32),
        jax.ShapeDtypeStruct(latents, jnp.float32),
        jax.ShapeDtypeStruct((settings.trajectories, length), jnp.int32),
    )
    train = phases.Rehearsal(_SECTION, settings, mesh)
    _train(train, settings, stream, pipeline, lessons)
    return train.plan(
        [
            (
                "data",
                f"{settings.trajectories:,} samples of {settings.model}, "
                f"{settings.steps_of_teacher} steps at guidance "
                f"{settings.guidance_scale:g}, kept at {settings.steps} of them",
            )
        ]
    )


def _schedules(pipeline, settings):
    return targets.schedules(pipeline.solver, settings.steps, settings.steps_of_teacher)


def _lessons(config, workdir, stream, pipeline) -> Lessons:
    """The teacher's samples, kept in the workdir part by part."""
    settings = config.few_steps
    names = ("model", "prompts", "steps", "steps_of_teacher", "guidance_scale")
    made_with = {name: settings[name] for name in names}
    made_with |= {"seed": config.seed, "content": hub.model_digest(settings.model)}
    run = functools.partial(_part, pipeline, settings, stream)
    parts, count = [], settings.trajectories
    with (
        interruption.deferred("part of the samples"),
        Progress(count, "sample", 0, "teacher") as progress,
    ):
        for first in range(0, count, _ROWS):
            path = workdir / "trajectories" / f"{first:07d}.npz"
            rows = min(_ROWS, count - first)
            parts.append(_kept(path, json.dumps(made_with), rows, run, first))
            progress.update(rows)
            interruption.check(
                f"{progress.done:,} of {count:,} samples are saved; the same command "
                "makes the others"
            )
    return jax.tree.map(lambda *columns: np.concatenate(columns), *parts)


def _kept(path, made_with: str, count: int, run, first: int) -> Lessons:
    """The first samples of a part, read from its file where that is of the settings."""
    if path.exists():
        with np.load(path) as stored:
            found = {name: stored[name] for name in stored.files}
        kept = Lessons(*(found[name] for name in Lessons._fields))
        if str(found["made_with"]) == made_with and len(kept.tokens) >= count:
            return jax.tree.map(lambda column: column[:count], kept)
        say(f"{path} was made with other settings: it is made anew")
    made = run(first, count)
    buffer = io.BytesIO()
    np.savez(buffer, made_with=made_with, **made._asdict())
    artifacts.write_bytes(path, buffer.getvalue())
    return made


def _part(
    pipeline: StableDiffusion, settings: ConfigDict, stream: Any, first: int, count: int
) -> Lessons:
    """Samples of the teacher: sample i depends on the seed and i."""
    student, teacher = _schedules(pipeline, settings)
    texts = _texts(settings)
    numbers = np.arange(first, first + count)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream(_NOISE), numbers)
    chosen = jax.vmap(
        lambda i: jax.random.randint(
            jax.random.fold_in(stream(_PROMPTS), i), (), 0, len(texts)
        )
    )(numbers)
    tokens = pipeline.tokenize([texts[i] for i in chosen.tolist()])
    start = targets.start_of(
        tokens, pipeline.tokenize([""]), keys, settings.guidance_scale
    )
    states = _states(pipeline.networks)
    every = settings.steps_of_teacher // settings.steps
    places = states(pipeline.params, start, teacher, every)
    return Lessons(
        np.stack(places[:-1], axis=1),
        np.stack(targets.outputs(student, places), axis=1),
        tokens,
    )


@functools.lru_cache(maxsize=1)
def _states(networks: Networks):
    """Compiled once, for all parts."""
    return targets.states(networks, networks.latent_shape())


def _texts(settings: ConfigDict) -> list[str]:
    """The prompts, of which each sample gets one."""
    if not settings.prompts:
        return prompts.all_prompts()
    path = pathlib.Path(settings.prompts)
    remedy = "name a prompts.json of generate.prompts in config.few_steps.prompts"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file: {remedy}")
    content = artifacts.read_json(path, {"prompts": {"*": ["text"]}}, remedy)
    return [text for texts in content["prompts"].values() for text in texts]


def student_loss(
    networks: Networks,
    timesteps: Int[np.ndarray, " steps"],
    params: Any,
    updates: Any,
    lessons: Lessons,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Squared error of the outputs, at one step of each sample of the batch."""
    count = len(lessons.tokens)
    # Every step as often as every other.
    chosen = (jnp.arange(count) + jax.random.randint(key, (), 0, count)) % len(
        timesteps
    )
    places, outputs = (
        each[jnp.arange(count), chosen] for each in (lessons.places, lessons.outputs)
    )
    context = networks.text_encoder.apply(
        {"params": params["text_encoder"]}, lessons.tokens
    )
    found = networks.unet.apply(
        {"params": low_rank.merge(params["unet"], updates)},
        places,
        jnp.asarray(timesteps)[chosen],
        context,
    )
    return ((found - outputs) ** 2).mean()


def _train(train, settings, stream, pipeline, lessons) -> dict[str, Any]:
    """The student's updates of the UNet."""
    student, _ = _schedules(pipeline, settings)
    params = jax.device_get(
        {name: pipeline.params[name] for name in ("unet", "text_encoder")}
    )

    def batch(lessons, key):
        rows = jax.random.randint(key, (settings.batch_size,), 0, len(lessons.tokens))
        return jax.tree.map(lambda each: each[rows], lessons)

    return train(
        "student",
        params=low_rank.init(stream(_INIT), params["unet"], settings.rank),
        loss=lambda updates, lessons, key: student_loss(
            pipeline.networks, student.timesteps, params, updates, lessons, key
        ),
        data=lessons,
        batch=batch,
        key=stream(_DATA),
    )
