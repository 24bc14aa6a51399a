"""Trains a small generator, as those that ship in `gptfl_jax/assets`.

    python -m train.generator --config=configs/glyphs.py --workdir=runs/glyphs
    python -m train.generator --config=configs/voices.py --workdir=runs/voices
    python -m train.generator --config=configs/drums.py --workdir=runs/drums
    python -m train.generator --config=configs/few_steps.py --workdir=runs/few-steps

A config with the section `text_to_image` trains a Stable Diffusion of digits, on
rendered glyphs (extra `fonts`; see `train/glyphs/`). One with `text_to_speech`
trains a SpeechT5 and a HiFi-GAN, on words of speech synthesizers (extra `voices`, and
the programs espeak-ng and flite; see `train/voices/`). One with `text_to_sound` trains
an AudioLDM of drums, on strokes made by rule and Sonic Pi's samples (see
`train/drums/`). One with `few_steps` distils a Stable Diffusion to few steps without
guidance (see `train/few_steps/`).

Every batch is a function of seed and step: a run that was killed goes on from its last
checkpoint and ends with what an uninterrupted run gives.
"""

import pathlib
import shlex

from ml_collections import ConfigDict

from gptfl_jax import configuration, planning, trackers
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import say
from train.drums import program as drums
from train.few_steps import program as few_steps
from train.glyphs import program as glyphs
from train.voices import program as voices

_KINDS = {
    "text_to_image": glyphs,
    "text_to_speech": voices,
    "text_to_sound": drums,
    "few_steps": few_steps,
}
# The program, and the field of `config.generate`, that take what a kind makes.
_TAKEN_BY = {
    "text_to_image": ("images", "model"),
    "text_to_speech": ("speech", "model"),
    "text_to_sound": ("sounds", "model"),
    "few_steps": ("images", "lora"),
}


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains the generator whose section the config has."""
    prepare(config)
    trackers.check(config)
    for section, kind in _KINDS.items():
        if section in config:
            say(f"{phases_of(config, section)}, into {workdir}")
            kind.run(config, workdir)


def phases_of(config: ConfigDict, section: str) -> str:
    """The phases that train a generator, in words: what has steps and a rate."""
    settings = config[section]
    names = [
        dotted.removeprefix(f"{section}.").removesuffix("_learning_rate")
        for dotted, _ in configuration.fields(section)
        if dotted.endswith("_learning_rate")
    ]
    return ", ".join(f"{settings[f'{each}_steps']:,} steps of {each}" for each in names)


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a run would take."""
    prepare(config)
    for section, kind in _KINDS.items():
        if section in config:
            say(planning.table(kind.plan(config)))


def then(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The command that makes samples with what was trained."""
    (section,) = (each for each in _KINDS if each in config)
    program, field = _TAKEN_BY[section]
    # What is left in the workdir is called as the field that takes it.
    taken = shlex.quote(f"--config.generate.{field}={workdir / field}")
    return f"python -m generate.{program} --config=... --workdir=... {taken}"


def main() -> None:
    """The command line."""
    launch(run, (tuple(_KINDS),), dry_run=dry_run, then=then)


if __name__ == "__main__":
    main()
