"""Stage 1b for sounds: synthetic clips of every class, in `<workdir>/synthetic`.

    python -m generate.prompts --config=configs/esc50.py --workdir=runs/esc50
    python -m generate.sounds  --config=configs/esc50.py --workdir=runs/esc50

`generate.model` names an AudioLDM of the first version: "drums", which ships with this
package and makes strokes of drums and cymbals alone, or "cvssp/audioldm", whose licence
(CC BY-NC-SA 4.0) forbids commercial use: every line of the manifest says under which
licence the model is. Needs `<workdir>/prompts.json` of generate.prompts.

Clips are 16-bit WAV files of `generate.duration_s` seconds at the vocoder's rate
(16 kHz). With the method `ucg` each clip's guidance is drawn. Started again after an
interruption it goes on where it stopped; asked for more samples it adds them. A sample
depends on the config, its class and its number alone, so batch size, devices and
processes may change in between.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Float
from ml_collections import ConfigDict

from generate import clips, samples
from gptfl_jax import planning
from gptfl_jax.artifacts import Sample
from gptfl_jax.data import audio
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import folders
from gptfl_jax.generators.sounds.audioldm import SOLVER, AudioLDM, lower, networks_of
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import say
from gptfl_jax.released.licences import licence_of


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the clips that are missing, and the preview."""
    prepare(config)
    prompts, made_prompts = samples.read_prompts(workdir, config)
    counts = samples.samples_per_class(config, list(prompts))
    guidance = samples.guidance_scales(config, made_prompts)
    choices = [{"guidance": scale} for scale in guidance]
    planned = samples.plan(config, prompts, counts, choices, ".wav")
    options = config.generate
    samples.make(
        config,
        workdir,
        samples.Work(
            "clips",
            planned,
            _settings(config, prompts, guidance),
            f"{options.duration_s:g} s, {samples.manner(config, guidance)}",
            audio.is_whole_wav,
            lambda: _load(config, workdir, planned),
            clips.draw_preview,
        ),
    )


def _load(
    config: ConfigDict, workdir: pathlib.Path, planned: Sequence[Sample]
) -> samples.Maker:
    options = config.generate
    pipeline = AudioLDM.from_pretrained(
        options.model, dtype=options.dtype, solver=options.solver
    )
    # Before the first batch is made, and not after it.
    pipeline.networks.latent_shape(options.duration_s)
    # Where the scales do not differ, a scale of 1 for all takes half of the work.
    drawn = len({sample.guidance for sample in planned}) > 1

    def make_batch(rows: Sequence[Sample]) -> Float[jax.Array, "rows samples"]:
        scales = [sample.guidance for sample in rows]
        return pipeline(
            [sample.prompt for sample in rows],
            key=samples.keys(rows),
            num_steps=options.num_steps,
            guidance_scale=scales if drawn else scales[0],
            duration_s=options.duration_s,
            negative_prompts=options.negative_prompt,
        )

    rate = pipeline.networks.vocoder.config.sampling_rate
    encode = functools.partial(audio.encode_wav, rate=rate)
    return samples.Maker(
        make_batch,
        encode,
        pipeline.tokenizer,
        lambda: plan(config, workdir, counted_only=True),
    )


def _settings(
    config: ConfigDict, prompts: Mapping[str, Sequence[str]], guidance: Sequence[float]
) -> dict[str, Any]:
    """What the sound of a sample depends on, by the names a refusal shows."""
    names = ("model", "solver", "num_steps", "negative_prompt", "duration_s", "dtype")
    return samples.diffusion_settings(config, names, guidance, prompts)


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a run would take."""
    prepare(config)
    say(planning.table(plan(config, workdir)))


def plan(
    config: ConfigDict, workdir: pathlib.Path, counted_only: bool = False
) -> planning.Plan:
    """What a run takes: the networks by their config files, the clips by the config.

    Args:
        counted_only: whether operations alone are of interest.

    Raises:
        UserError: the model is unknown, or the classes.
    """
    options = config.generate
    outline = samples.outline(config, workdir)
    guidance = samples.planned_guidance(config, outline)
    guided = len(guidance) > 1 or guidance[0] > 1
    networks = networks_of(options.model, options.dtype)
    lowered = lower(
        networks,
        options.duration_s,
        placement.mesh(),
        batch=outline.batch,
        num_steps=options.num_steps,
        guided=guided,
        solver=folders.solver_of(options.solver, SOLVER),
        counted_only=counted_only,
    )
    sizes = {
        name: planning.amount(planning.parameters(tree))
        for name, tree in lowered.params.items()
    }
    facts = [
        (
            "model",
            f"{options.model} in {options.dtype}: UNet {sizes['unet']}, text encoder "
            f"{sizes['text_encoder']}, autoencoder {sizes['vae']}, vocoder "
            f"{sizes['vocoder']} parameters; licence: {licence_of(options.model)}",
        ),
        *outline.facts(config, "clips"),
        (
            "sampling",
            f"{options.duration_s:g} s, {options.num_steps} steps, "
            f"{'with' if guided else 'without'} guidance",
        ),
    ]
    smaller = "lower config.generate.batch_size or duration_s"
    return samples.diffusion_plan("generate.sounds", facts, lowered, outline, smaller)


def main() -> None:
    launch(
        run,
        sections=("data", "prompts", "generate"),
        dry_run=dry_run,
        then=samples.then,
    )


if __name__ == "__main__":
    main()
