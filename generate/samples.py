"""What the programs that make samples share: from prompts to a finished folder.

Each program plans its samples (`plan`), says how a batch is made and written (`Work`)
and leaves the rest to `make`: resuming, the split over processes, writing in the
background, progress and the preview.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict
from PIL import Image

from generate import sample_folder, wording
from generate.prompts import label_set_of_config
from generate.prompts import settings as prompt_settings
from gptfl_jax import artifacts, drawing, interruption, planning, prompting
from gptfl_jax.artifacts import Sample
from gptfl_jax.data import outline as data_outline
from gptfl_jax.data import sample_counts, sources
from gptfl_jax.data.datasets import Source
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.lowering import Lowered
from gptfl_jax.progress import Progress, say
from gptfl_jax.released import hub
from gptfl_jax.released.licences import licence_of

# The shape of prompts.json.
_PROMPTS_FILE = {
    "prompts": {"*": ["text"]},
    "made?": {
        "method?": "text",
        "guidance_choices?": ["number"],
        "config?": {"*": "anything"},
    },
}


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
    remedy = f"it holds no prompts by class: make it with `{command}`"
    content = artifacts.read_json(path, _PROMPTS_FILE, remedy)
    prompts, made = content["prompts"], content.get("made", {})
    made_with = made.get("config", {})
    if not prompts or not all(prompts.values()):
        raise UserError(f"{path}: {remedy}")
    for name, value in json.loads(json.dumps(prompt_settings(config))).items():
        if made_with.get(name, value) != value:
            raise UserError(
                f"{path} was made with config.{name} = {made_with[name]!r}, now it is "
                f"{value!r}: put it back, or make the prompts again with `{command}`"
            )
    return prompts, made


class Outline(NamedTuple):
    """What will be made, before the prompts need be."""

    counts: dict[str, int]
    """Samples of each class."""
    prompts: dict[str, list[str]]
    """Of each class; where they are not made yet, how it is called."""
    made: dict[str, Any]
    """How they were made; empty where they are not yet."""
    batch: int
    """Samples this process makes at once."""
    batches: int
    """That it makes of them."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def facts(self, config: ConfigDict, plural: str) -> list[tuple[str, str]]:
        """What a plan says of it."""
        low, high = min(self.counts.values()), max(self.counts.values())
        each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        prompts = "" if self.made else "; their prompts are not made yet"
        return [
            (plural, f"{self.total:,} of {len(self.counts)} classes, {each} a class"),
            ("batches", f"{self.batches:,} of {self.batch} {plural}{prompts}"),
        ]


def outline(config: ConfigDict, workdir: pathlib.Path) -> Outline:
    """What a config asks for; of data that are not there the released sizes count.

    Raises:
        UserError: as `samples_per_class`; the classes are unknown.
    """
    if (workdir / "prompts.json").exists():
        prompts, made = read_prompts(workdir, config)
    else:
        made = {}
        phrases = label_set_of_config(config, data_outline.class_names).phrases
        prompts = {name: [phrase] for name, phrase in phrases.items()}
    counts = samples_per_class(
        config, list(prompts), lambda *a, **k: data_outline.load(*a, **k)[0]
    )
    total = sum(counts.values())
    batches = share(range(total), config.generate.batch_size)
    size = len(batches[0]) if batches else 0
    return Outline(counts, prompts, made, size, len(batches))


def samples_per_class(
    config: ConfigDict,
    classes: Sequence[str],
    load: Callable[..., Source] = sources.load,
) -> dict[str, int]:
    """How many samples each class gets, in the order of `classes`.

    Args:
        load: gives the real data, which are read where a multiple of their number is
            asked for.

    Raises:
        UserError: as `sample_counts.samples_per_class`.
    """

    def real_counts() -> dict[str, int]:
        data = config.data
        train = load(
            data.source,
            data.folder,
            image_size=data.image_size,
            channels=data.channels,
            **data.options,
        ).train
        per_label = np.bincount(train.labels, minlength=train.num_classes)
        return dict(zip(train.class_names, per_label.tolist(), strict=True))

    wanted = config.generate.samples_per_class
    if isinstance(wanted, ConfigDict):
        wanted = wanted.to_dict()
    return sample_counts.samples_per_class(
        wanted, classes, real_counts, config.data.source
    )


def plan(
    config: ConfigDict,
    prompts: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
    choices: Sequence[Mapping[str, Any]],
    ending: str,
) -> list[Sample]:
    """All samples in the order they are made and listed.

    Every class's sample 0 comes first, then every class's sample 1: an unfinished
    folder holds about as many of each class.

    Args:
        prompts: of each class, of which each sample gets one.
        counts: samples of each class.
        choices: fields of `Sample`, of which each sample draws one set.
        ending: of the files, as ".png".
    """
    key = jax.random.key(config.seed)
    licence = licence_of(config.generate.model)
    folders = sample_folder.folder_names(list(prompts))
    by_class = []
    for name, count in counts.items():
        draws = prompting.draw(key, name, count, len(prompts[name]), len(choices))
        rows = zip(*(column.tolist() for column in draws), strict=True)
        by_class.append(
            [
                Sample(
                    file=f"{folders[name]}/{folders[name]}_{index:05d}{ending}",
                    label=name,
                    prompt=prompts[name][prompt],
                    seed=seed,
                    model=config.generate.model,
                    licence=licence,
                    **choices[choice],
                )
                for index, (prompt, choice, seed) in enumerate(rows)
            ]
        )
    rounds = itertools.zip_longest(*by_class)
    return [sample for each in rounds for sample in each if sample is not None]


def guidance_scales(
    config: ConfigDict, made_prompts: Mapping[str, Any]
) -> tuple[float, ...]:
    """The guidance scales that each sample's is drawn from.

    The config's choices; where it has none, those that the prompt method stands for
    (ucg); else the one of `guidance_scale`.
    """
    choices = config.generate.guidance_choices or made_prompts.get("guidance_choices")
    return tuple(map(float, choices or (config.generate.guidance_scale,)))


def planned_guidance(config: ConfigDict, outline: Outline) -> tuple[float, ...]:
    """`guidance_scales`, before the prompts need be made."""
    made = outline.made
    if not made and config.prompts.method == "ucg":
        made = {"guidance_choices": prompting.UCG_GUIDANCE}
    return guidance_scales(config, made)


def manner(config: ConfigDict, guidance: Sequence[float]) -> str:
    """How a diffusion model makes samples, for the first line that is printed."""
    drawn = "guidance" if len(guidance) == 1 else "guidance drawn from"
    scales = ", ".join(f"{scale:g}" for scale in guidance)
    solver = config.generate.solver
    solver = "" if solver == "auto" else f" of {solver}"
    return f"{config.generate.num_steps} steps{solver}, {drawn} {scales}"


def diffusion_plan(
    program: str,
    facts: Sequence[tuple[str, str]],
    lowered: Lowered,
    outline: Outline,
    smaller: str,
) -> planning.Plan:
    """What a run of a diffusion model takes.

    Args:
        program: its name.
        facts: said of it.
        lowered: sampling of a batch.
        outline: of the samples.
        smaller: what to do where a program needs too much memory.
    """
    return planning.Plan(
        program,
        facts,
        resident=[
            planning.Resident(
                "weights", lowered.params, "set config.generate.dtype='bfloat16'"
            )
        ],
        programs=[
            planning.Program(name, each, smaller)
            for name, each in lowered.programs.items()
        ],
        work=[
            planning.Work(name, flops, times * outline.batches)
            for name, (flops, times) in lowered.flops.items()
        ],
    )


class Maker(NamedTuple):
    """The loaded networks."""

    make_batch: Callable[[Sequence[Sample]], PyTree]
    """The content of samples: arrays whose first axis are the samples."""
    encode: Callable[[PyTree], bytes]
    """The file of one sample, from its row of these arrays."""
    tokenizer: Any
    """Of the prompts."""
    plan: Callable[[], planning.Plan]
    """Of the whole run."""


class Preview(NamedTuple):
    """A picture of samples."""

    picture: Image.Image | None
    """None where no file can be shown."""
    broken: Sequence[str]
    """Files that cannot be shown, each with the reason."""


class Work(NamedTuple):
    """What one program makes; how it is made in the end is the same for all."""

    plural: str
    """Of what is made, as "images"."""
    planned: Sequence[Sample]
    settings: Mapping[str, Any]
    """As `SampleFolder` takes them."""
    manner: str
    """How they are made, for the first line that is printed."""
    complete: Callable[[pathlib.Path], bool]
    """As `SampleFolder` takes it."""
    load: Callable[[], Maker]
    """Called only where something is missing."""
    draw_preview: Callable[[Mapping[str, Sequence[pathlib.Path]]], Preview]
    """The picture of the files of each class."""


def make(config: ConfigDict, workdir: pathlib.Path, work: Work) -> None:
    """Makes the samples that are missing in `<workdir>/synthetic`, and the preview."""
    folder = sample_folder.SampleFolder(
        workdir / "synthetic", work.planned, work.settings, work.complete
    )
    start = time.monotonic()
    with artifacts.lock(workdir):
        made = folder.open()
        _announce(config, work, len(made))
        if len(made) < len(work.planned):
            # Of a run that goes on: the settings are those of the record.
            known = artifacts.read_flops(folder.folder) if made else {}
            flops = _flops(work, known.get("sample"))
            artifacts.write_run_record(folder.folder, config, flops)
            _make_missing(config, work, folder, made)
        folder.close()
        if jax.process_index() == 0:
            missing = len(work.planned) - len(made)
            _finish(config, work, folder, missing, time.monotonic() - start)


def operations(maker: Maker) -> float:
    """Floating-point operations of the whole run, counted in seconds."""
    return planning.total_flops(maker.plan())


def _flops(work: Work, each: float | None) -> dict[str, float] | None:
    """What the record says of floating-point operations, those of a sample given."""
    if each is None:
        return None
    return {"generation": each * len(work.planned), "sample": each}


def _make_missing(
    config: ConfigDict,
    work: Work,
    folder: sample_folder.SampleFolder,
    made: set[str],
) -> None:
    """Makes this process's share of the samples that are not in `made`."""
    batches = share(work.planned, config.generate.batch_size)
    unfinished = [b for b in batches if any(s.file not in made for s in b)]
    if not unfinished:
        return
    maker = work.load()
    if not artifacts.read_flops(folder.folder):
        each = operations(maker) / len(work.planned)
        artifacts.write_run_record(folder.folder, config, _flops(work, each))
    prompts: dict[str, set[str]] = {}
    for sample in work.planned:
        prompts.setdefault(sample.label, set()).add(sample.prompt)
    wording.warn(maker.tokenizer, {k: sorted(v) for k, v in prompts.items()})
    total = sum(map(len, batches))
    missing = sum(sample.file not in made for batch in unfinished for sample in batch)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(Progress(total, work.plural, total - missing))
        preview = _EarlyPreview(config, work, folder)

        def on_written(samples: Sequence[Sample]) -> None:
            progress.update(len(samples))
            preview.update()

        writer = stack.enter_context(
            sample_folder.SampleWriter(folder.folder, maker.encode, on_written)
        )
        stack.enter_context(interruption.deferred("batch"))
        for batch in unfinished:
            if interruption.requested():
                break
            # One shape for all: the last batch is filled up with its last sample.
            filling = [batch[-1]] * (len(batches[0]) - len(batch))
            content = maker.make_batch([*batch, *filling])
            rows = [i for i, sample in enumerate(batch) if sample.file not in made]
            writer.put([batch[row] for row in rows], rows, content)
        writer.wait()
        interruption.check(
            f"{progress.done:,} of {total:,} {work.plural} are made; the same command "
            "makes the others"
        )


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


def keys(samples: Sequence[Sample]) -> Key[Array, " samples"]:
    """The key that each sample is drawn from."""
    return jax.vmap(jax.random.key)(np.array([s.seed for s in samples], np.uint32))


def settings(
    config: ConfigDict,
    names: Sequence[str],
    others: Mapping[str, Any],
    prompts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """What a sample's content depends on, by the names a refusal shows.

    Args:
        names: of the fields of `config.generate`.
        others: what else it depends on.
        prompts: of each class.
    """
    result: dict[str, Any] = {"config.seed": config.seed}
    for name in names:
        result[f"config.generate.{name}"] = config.generate[name]
    result |= others
    for name, sentences in prompts.items():
        content = json.dumps(sentences).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        result[f"list of prompts for class {name!r}"] = digest
    return result


def diffusion_settings(
    config: ConfigDict,
    names: Sequence[str],
    guidance: Sequence[float],
    prompts: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """`settings` of a model whose samples are guided by one of some scales."""
    others = {
        "guidance scales": list(guidance),
        "content of the model's files": hub.model_digest(config.generate.model),
    }
    return settings(config, names, others, prompts)


def _shown(
    config: ConfigDict, work: Work, folder: sample_folder.SampleFolder
) -> dict[str, list[pathlib.Path]]:
    """The files of each class on the preview, its first samples."""
    most = config.generate.preview_per_class
    shown: dict[str, list[pathlib.Path]] = {}
    for sample in work.planned if most else ():
        files = shown.setdefault(sample.label, [])
        if len(files) < most:
            files.append(folder.folder / sample.file)
    return shown


def _preview(
    config: ConfigDict, work: Work, folder: sample_folder.SampleFolder
) -> None:
    shown = _shown(config, work, folder)
    if not shown:
        return
    preview = work.draw_preview(shown)
    for each in preview.broken:
        say(
            f"left out of the preview, {each}. Delete the file and start again: it is "
            "made anew"
        )
    if preview.picture is not None:
        artifacts.write_bytes(
            folder.folder / "preview.png", drawing.encode_png(preview.picture)
        )


class _EarlyPreview:
    """Writes the preview as soon as its samples are there."""

    def __init__(
        self, config: ConfigDict, work: Work, folder: sample_folder.SampleFolder
    ):
        self._parts = config, work, folder
        shown = _shown(*self._parts).values()
        self._waiting = {file for files in shown for file in files}

    def update(self) -> None:
        if self._waiting and jax.process_index() == 0:
            self._waiting -= {file for file in self._waiting if file.exists()}
            if not self._waiting:
                _preview(*self._parts)


def _announce(config: ConfigDict, work: Work, made: int) -> None:
    if jax.process_index() != 0:
        return
    counts = collections.Counter(sample.label for sample in work.planned).values()
    low, high = min(counts), max(counts)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    text = (
        f"{len(work.planned):,} {work.plural} of {len(counts)} classes, {each} a "
        f"class, by {config.generate.model}: {work.manner}; the model's licence: "
        f"{work.planned[0].licence}"
    )
    if made:
        text += f"; {made:,} are there already"
    say(text)


def _finish(
    config: ConfigDict,
    work: Work,
    folder: sample_folder.SampleFolder,
    made: int,
    seconds: float,
) -> None:
    _preview(config, work, folder)
    text = f"{len(work.planned):,} {work.plural} in {folder.folder}"
    if made:
        part = "" if made == len(work.planned) else f"{made:,} of them "
        text += f", {part}made in {seconds:.0f} s"
    if config.generate.preview_per_class:
        text += f"; a look at them: {folder.folder / 'preview.png'}"
    say(text)


def then(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The command of stage 2."""
    return "python -m train.downstream {same}" if "train" in config else ""
